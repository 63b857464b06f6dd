(() => {
  "use strict";
  for (const figure of document.querySelectorAll("[data-compare]")) {
    const stage = figure.querySelector(".stage");
    const range = figure.querySelector("input");
    const show = () => {
      const left = Number(range.value);
      stage.style.setProperty("--cut", left + "%");
      range.setAttribute("aria-valuetext", left + " % before, " + (100 - left) + " % after");
    };
    range.addEventListener("input", show);
    show();
  }
  const filters = document.querySelector("[data-filters]");
  if (filters) {
    const find = filters.querySelector("input");
    const kind = filters.querySelector("select");
    const count = filters.querySelector("[data-count]");
    const entries = [...document.querySelectorAll(".entry")];
    const words = entries.map((entry) => entry.textContent.toLowerCase());
    const show = () => {
      const wanted = find.value.trim().toLowerCase();
      let shown = 0;
      entries.forEach((entry, i) => {
        entry.hidden = !words[i].includes(wanted) || (kind.value !== "" && entry.dataset.kind !== kind.value);
        shown += entry.hidden ? 0 : 1;
      });
      count.textContent = shown === entries.length ? "" : shown + " shown";
    };
    find.addEventListener("input", show);
    kind.addEventListener("change", show);
    filters.hidden = false;
    show();
  }
})();
