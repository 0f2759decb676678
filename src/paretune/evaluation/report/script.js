// Shows what a mark means beside the pointer, on touch, or when it has the focus. Text only, never markup.
"use strict";
(() => {
  const box = document.getElementById("tip");
  let shown = null;
  // A browser would show a title of its own over ours; without this script it is all there is.
  for (const title of document.querySelectorAll(".tip > title")) title.remove();
  const hide = () => { box.hidden = true; shown = null; };
  const show = (mark) => {
    shown = mark;
    box.textContent = mark.dataset.tip;
    box.hidden = false;
    const at = mark.querySelector(".reach").getBoundingClientRect();
    const size = box.getBoundingClientRect();
    const edge = 8;
    const left = Math.min(Math.max(edge, at.left + at.width / 2 - size.width / 2), innerWidth - size.width - edge);
    const above = at.top - size.height - 6;
    box.style.left = `${Math.max(edge, left) + scrollX}px`;
    box.style.top = `${(above > edge ? above : at.bottom + 6) + scrollY}px`;
  };
  const of = (event) => event.target.closest && event.target.closest(".tip");
  document.addEventListener("pointerover", (event) => { const mark = of(event); if (mark) show(mark); else if (shown) hide(); });
  document.addEventListener("click", (event) => { const mark = of(event); if (mark) show(mark); });
  document.addEventListener("focusin", (event) => { const mark = of(event); if (mark) show(mark); });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("beforeprint", () => { hide(); for (const fold of document.querySelectorAll("details")) fold.open = true; });
})();
