-- What a single Redis has to do for the cluster slots: nothing.
local function check_shard() end
local function drop_cluster_slots() return '' end
