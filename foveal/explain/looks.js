// Marks the box and the card of a look together, while the pointer or the focus is on one of them.
function markLook(look) {
  for (const part of document.querySelectorAll("[data-look]")) part.classList.toggle("on", part.dataset.look === look);
}
for (const [kind, enters] of [["pointerover", true], ["pointerout", false], ["focusin", true], ["focusout", false]]) {
  document.addEventListener(kind, (event) => {
    const part = event.target.closest?.("[data-look]");
    if (part) markLook(enters ? part.dataset.look : null);
  });
}
