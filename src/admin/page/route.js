// The state of the page is its address: `#/datasets/product`, `#/key?key=…`. Who sends it to somebody sends what they see.

/** `{screen, name, query}` of an address. */
export function parse(hash) {
  const [path, query] = split(hash.replace(/^#\/?/, ""), "?");
  const [screen, name] = split(path, "/");
  return { screen, name: decode(name), query: new URLSearchParams(query) };
}

/** The address of a screen; empty parts are left out. */
export function to(screen, name, query) {
  const given = Object.entries(query ?? {}).filter(([, value]) => value);
  const asked = new URLSearchParams(given).toString();
  return `#/${screen}${name ? `/${encodeURIComponent(name)}` : ""}${asked ? `?${asked}` : ""}`;
}

export const toKey = (key) => to("key", "", { key });
export const toDataset = (name) => to("datasets", name);

/** Puts another address in place of this one without opening its screen anew. */
export function replace(address) {
  history.replaceState(null, "", address);
}

function split(text, at) {
  const place = text.indexOf(at);
  return place < 0 ? [text, ""] : [text.slice(0, place), text.slice(place + 1)];
}

/** An address that somebody typed may be no right encoding. */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
