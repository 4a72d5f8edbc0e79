"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const table = byId("entries"), body = table.tBodies[0], form = byId("controls");
  const rows = [...body.rows].map((row, place) => ({
    row, place, family: row.dataset.family, text: row.textContent.toLowerCase().replace(/\s+/g, " "),
  }));
  const headings = [...table.tHead.rows[0].cells].filter((cell) => cell.dataset.key);
  const flags = [...form.querySelectorAll("select[data-flag]")];
  const columnOf = new Map(headings.map((cell) => [cell.dataset.key, cell.cellIndex]));
  let sort = "";  // a key, "-" in front of it for downwards

  function value(entry, key) {
    const cell = entry.row.cells[columnOf.get(key)];
    if (cell.classList.contains("unknown")) return null;
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent.trim();
  }
  function compare(key, direction) {
    return (a, b) => {
      const x = value(a, key), y = value(b, key);
      if (x === null || y === null) return (x === null) - (y === null) || a.place - b.place;
      const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
      return direction * order || a.place - b.place;
    };
  }
  function fits(entry, words) {
    const family = byId("family").value;
    if (family && entry.family !== family) return false;
    for (const flag of flags) {
      if (flag.value && value(entry, flag.dataset.flag) !== flag.value) return false;
    }
    return words.every((word) => entry.text.includes(word));
  }

  function show() {
    const words = byId("q").value.toLowerCase().split(/\s+/).filter(Boolean);
    const key = sort.replace(/^-/, "");
    const ordered = [...rows];
    if (columnOf.has(key)) ordered.sort(compare(key, sort.startsWith("-") ? -1 : 1));
    let count = 0;
    for (const entry of ordered) {
      entry.row.hidden = !fits(entry, words);
      count += !entry.row.hidden;
    }
    body.append(...ordered.map((entry) => entry.row));
    byId("count").textContent = `${count} of ${rows.length} entries`;
    for (const cell of headings) {
      if (cell.dataset.key !== key) cell.removeAttribute("aria-sort");
      else cell.setAttribute("aria-sort", sort.startsWith("-") ? "descending" : "ascending");
    }
  }

  // The address holds the choice, so that it can be shared

  function remember() {
    const state = new URLSearchParams();
    for (const field of [byId("q"), byId("family"), ...flags]) if (field.value) state.set(field.name, field.value);
    if (sort) state.set("sort", sort);
    const hash = state.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }
  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const field of [byId("q"), byId("family"), ...flags]) {
      field.value = state.get(field.name) || "";
      if (field.selectedIndex === -1) field.value = "";  // no such choice
    }
    sort = state.get("sort") || "";
    if (!columnOf.has(sort.replace(/^-/, ""))) sort = "";
    show();
  }
  function changed() { show(); remember(); }

  for (const cell of headings) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const key = cell.dataset.key;
      sort = sort === key ? `-${key}` : sort === `-${key}` ? "" : key;
      changed();
    });
  }
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => { sort = ""; setTimeout(changed); });
  addEventListener("hashchange", recall);

  // Commands to copy

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // no permission, or an old browser
      const field = document.createElement("textarea");
      field.value = text;
      document.body.append(field);
      field.select();
      const done = document.execCommand("copy");
      field.remove();
      if (!done) throw new Error("the browser did not copy");
    }
  }
  for (const button of body.querySelectorAll("button.copy")) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      try {
        await copy(button.dataset.copy);
        button.textContent = "copied";
        button.classList.add("done");
      } catch {
        button.textContent = button.dataset.copy;  // to be selected by hand
      }
      setTimeout(() => { button.textContent = label; button.classList.remove("done"); }, 2500);
    });
  }
  for (const cell of table.querySelectorAll(".get")) cell.hidden = false;
  form.hidden = false;
  recall();
})();
