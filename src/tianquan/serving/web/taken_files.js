/** Files that are dropped anywhere on the page, or pasted. */

/**
 * Take them.
 * @param {HTMLElement} target - gets the class `is-target` while files are over the page.
 * @param {(files: File[]) => void} onFiles - what to do with them.
 */
export function takeFiles(target, onFiles) {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0; // enter and leave come for every element in between
  const mark = (step) => {
    depth = step === 0 ? 0 : Math.max(0, depth + step);
    target.classList.toggle("is-target", depth > 0);
  };
  window.addEventListener("dragenter", (event) => hasFiles(event) && mark(1));
  window.addEventListener("dragleave", (event) => hasFiles(event) && mark(-1));
  window.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(0);
    onFiles([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return; // text goes where the cursor is
    event.preventDefault();
    onFiles(files);
  });
}
