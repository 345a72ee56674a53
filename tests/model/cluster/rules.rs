//! The rules of the protocol on a cluster, and who takes part in a world.

use super::topology::Fault;

/// Each of them left out must be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A script acts only where the guard of the key's cluster slot names its shard.
    GuardIsCompared,
    /// A fill without a stamp carries the guard's generation, which was read before its load.
    GenerationIsCompared,
    /// So does every store of a load, also those of the feed. (Where `floors` are kept instead: the shard alone.)
    LoadsNameGeneration,
    /// A generation never comes again, also where the guard was lost in between.
    GenerationsAreUnique,
    /// A store below the guard's floor is refused.
    FloorIsCompared,
    /// The guard's floor counts only in its incarnation of the database.
    FloorNamesIncarnation,
    /// A slot is adopted by a compare-and-set of its guard.
    AdoptionCompares,
    /// The script that adopts a slot refuses one that its node shows as moving, also where the guard is still there.
    AdoptionLooksAtNode,
    /// The floor is a snapshot that was taken after the guard was read at the node that serves the slot.
    FloorComesAfterGuard,
    /// The floor is at least the cursor of the shard that adopts.
    FloorReachesCursor,
    /// The script that adopts a slot takes it out of the watermark, which may cover it from an earlier time.
    AdoptionUncovers,
    /// An adopted slot is pending until its entries were loaded again.
    PendingUntilLoaded,
    /// What ends a pending slot names the adoption that it belongs to.
    SettlingNamesAdoption,
    /// A slot is adopted only where no other node holds keys of it, and none shows it as moving.
    OthersAreAsked,
    /// The others are asked again before each move of the watermark.
    OthersAreAskedAgain,
    /// A slot of which another node holds keys is to be adopted again, not merely left out for a while.
    LeftOversDropSlot,
    /// The slot of a change that a script refused is dropped in the script that moves the cursor.
    RefusedIsDropped,
    /// The script that moves the cursor compares the adopted slots with those that the batch was routed by.
    AdvanceComparesSlots,
    /// It drops slots that its node does not serve.
    AdvanceLooksAtNode,
    /// Where any server has another run than at the last move, the guards of all slots of this one are looked at.
    GuardsAreLookedAt,
    /// What claims something names the run of the server, so that a failover in between refuses it.
    ClaimsNameRun,
    /// A server that was rolled back begins a new epoch, also by a process that knows of nothing.
    RolledBackIsNewEpoch,
    /// The watermark names the slots that it covers, not those that are pending.
    WatermarkNamesSlots,
    /// There is a minimum over shards only where all watermarks name the same runs of all servers.
    MinimumNamesRuns,
    /// A watermark counts only at the node that it names: it does not move with its home slot. And every node has one.
    MinimumLooksAtNode,
    /// Nor does it count in another run of its server.
    MinimumLooksAtRun,
    /// There is a minimum only where all watermarks name one incarnation.
    MinimumNamesIncarnation,
    /// A reader trusts a watermark only where the guard names its shard.
    ReaderLooksAtGuard,
    /// A reader that reads them in three steps reads the watermark before the value.
    WatermarkBeforeValue,
    /// What is loaded again at an adoption becomes a member of its tags at the new shard, also where its bytes are the same.
    AdoptionAddsMembers,
    /// A shard raises a tag before it lists the members.
    TagIsRaisedFirst,
    /// Every shard raises a tag, whether it lists a member or not.
    TagIsRaisedEverywhere,
}

/// What an application does, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Application {
    Nothing,
    /// Loads from Postgres, with a stamp.
    Fills,
    /// Loads something without a snapshot; invalidation counters stand between it and a change.
    FillsUnstamped,
    /// Reads guard, watermark and value, with a token.
    Reads,
}

/// What a task does: fewer duties make worlds with two tasks small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duties {
    All,
    FollowsOne(usize),
    Adopts,
}

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each says whether one thing is part of the world")]
pub(crate) struct World {
    pub(crate) without: Option<Rule>,
    /// Transactions of the row of each key, and of the row that both share.
    pub(crate) todo: [u8; 3],
    pub(crate) tasks: usize,
    /// What each task does.
    pub(crate) duties: [Duties; 2],
    pub(crate) application: Application,
    /// Which entries are there in the beginning.
    pub(crate) cached: [bool; 2],
    /// Changes of the shared row reach entries by a tag.
    pub(crate) tags: bool,
    /// How often each fault may happen, and where: the node, or the cluster slot.
    pub(crate) faults: &'static [(Fault, usize, u8)],
    /// A reader reads guard, watermark and value in three steps, a pipeline. Else it is one script.
    pub(crate) pipelined: bool,
    /// How many rounds of the feed may begin although nothing has changed. (The real one begins two a second.)
    pub(crate) idle: u8,
    /// How often a task may adopt what another one is adopting.
    pub(crate) contests: u8,
    /// Slot 0 has been B's for a while; A's replica is still where it was before.
    pub(crate) has_moved: bool,
    /// What keeps older loads out of an adopted slot is a floor in its guard, and not the generation.
    pub(crate) floors: bool,
    /// In a slot that moves a script reaches nothing (Redis 8.2, Valkey 9.1), and not what is still there.
    pub(crate) moving_is_closed: bool,
    /// A migration may end while keys are left at the source.
    pub(crate) ends_early: bool,
    /// The others are asked for keys where a server, its cluster slots or a migration is another than at the look before, and now and then
    /// (the real ones: once a second). Else what they have said counts.
    pub(crate) asks_seldom: bool,
    /// With it: a tool waits until they were asked, and not only until a round has passed.
    pub(crate) tools_wait_for_it: bool,
    /// Tools bring back what is left at other nodes once a whole round of the feed has passed, not at any moment.
    pub(crate) tools_are_slow: bool,
}

impl World {
    pub(crate) fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    pub(crate) fn without(mut self, rule: Rule) -> Self {
        self.without = Some(rule);
        self
    }
}

impl Default for World {
    fn default() -> Self {
        Self {
            without: None,
            todo: [1, 0, 0],
            tasks: 1,
            duties: [Duties::All; 2],
            application: Application::Nothing,
            cached: [true, false],
            tags: false,
            faults: &[],
            pipelined: false,
            idle: 0,
            contests: 0,
            has_moved: false,
            floors: false,
            moving_is_closed: false,
            ends_early: false,
            asks_seldom: false,
            tools_wait_for_it: false,
            tools_are_slow: true,
        }
    }
}
