/** Two questions to a person: another title, and whether to delete. */

const [rename, remove] = ["rename-dialog", "delete-dialog"].map((id) => document.getElementById(id));
const title = document.getElementById("new-title");

document.getElementById("cancel-rename").addEventListener("click", () => rename.close(""));

/** The new title, or "" if nothing is to change. @param {string} present @returns {Promise<string>} */
export async function askForTitle(present) {
  title.value = present;
  const answer = answerOf(rename);
  title.select();
  return (await answer) === "save" ? title.value.trim() : "";
}

/** @param {string} name @returns {Promise<boolean>} */
export async function mayDelete(name) {
  document.getElementById("deleted-title").textContent = name;
  return (await answerOf(remove)) === "delete";
}

/** The value of the button that closed it. @param {HTMLDialogElement} dialog @returns {Promise<string>} */
function answerOf(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}
