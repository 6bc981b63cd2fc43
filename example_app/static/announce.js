/** What a screen reader says: that an answer begins and how it ended, and not each of its letters. */

const announcer = document.getElementById("announcer");

/** @param {string} text */
export function announce(text) {
  announcer.textContent = "";
  requestAnimationFrame(() => (announcer.textContent = text)); // so that the same text is read again
}
