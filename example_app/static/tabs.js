/** The other tabs of this browser, and what happened while this one was not looked at. */

const channel = new BroadcastChannel("conversations");

/** Tells the other tabs. @param {{ changed?: string, deleted?: string, left?: boolean }} news */
export function tell(news) {
  channel.postMessage(news);
}

/** @param {(news: { changed?: string, deleted?: string, left?: boolean }) => void} heard */
export function listen(heard) {
  channel.addEventListener("message", ({ data }) => heard(data));
}

/** Calls *look* whenever a person comes back: another device may have asked meanwhile. @param {() => void} look */
export function whenLookedAt(look) {
  addEventListener("focus", look);
  addEventListener("pageshow", ({ persisted }) => persisted && look());
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && look());
}
