/** Buttons that copy a text, and say so. */

import { announce } from "./announce.js";

/**
 * @param {() => string} text  asked when the button is pressed
 * @param {string} name  what a screen reader calls the button
 */
export function copyButton(text, name) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.ariaLabel = name;
  button.hidden = !navigator.clipboard; // there is none on a page over plain HTTP from another machine
  button.addEventListener("click", async () => {
    const copied = await navigator.clipboard.writeText(text()).then(() => true, () => false);
    button.textContent = copied ? "Copied" : "Not copied";
    announce(copied ? "Copied" : "This could not be copied");
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}
