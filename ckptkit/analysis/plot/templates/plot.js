"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const chart = byId("chart"), tip = byId("tip"), details = byId("entry");
  const SVG = "http://www.w3.org/2000/svg";
  const shown = new Set(data.series.keys());
  const state = { ...data.start, find: "", open: null };

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  function draw(name, attributes, parent) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  }

  // What is shown

  function chosen() {
    const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    return data.entries.filter((entry) => {
      if (!shown.has(entry.series)) return false;
      const text = [entry.id, entry.name, ...entry.facts.map((fact) => fact[1])].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }
  function pointsOf(entries) {
    const places = new Map();
    for (const entry of entries) {
      const x = entry[state.x], y = entry[state.y];
      if (x === null || y === null || x <= 0) continue;
      const key = `${x} ${y}`;
      if (!places.has(key)) places.set(key, { x, y, entries: [] });
      places.get(key).entries.push(entry);
    }
    return [...places.values()].sort((a, b) => a.x - b.x || a.y - b.y);
  }
  function frontOf(points) {
    const front = [];
    for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) {
      if (!front.length || point.y > front[front.length - 1].y) front.push(point);
    }
    return front;
  }

  // Axes

  function human(value) {
    for (const [power, sign] of [[12, "T"], [9, "B"], [6, "M"], [3, "K"]]) {
      if (Math.abs(value) >= 10 ** power) return Number((value / 10 ** power).toPrecision(4)) + sign;
    }
    return String(Number(value.toPrecision(4)));
  }
  function linearTicks(low, high, wanted) {
    const rough = (high - low) / Math.max(wanted, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
    const ticks = [];
    for (let n = Math.ceil(Math.max(low, 0) / step - 1e-9); n * step <= high + step * 1e-9; n++) {
      ticks.push(Number((n * step).toPrecision(12)));
    }
    return ticks;
  }
  function logTicks(low, high, room) {
    const decade = room / Math.log10(high / low);
    const within = (steps) => {
      const ticks = [];
      for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
        for (const step of steps) ticks.push(step * 10 ** p);
      }
      return ticks.filter((tick) => tick >= low && tick <= high);
    };
    for (const [steps, nearest] of [[[1, 2, 5], 0.3], [[1, 3], 0.47], [[1], 1]]) {
      const ticks = within(steps);
      if (ticks.length >= 3 && nearest * decade >= 42) return ticks;
    }
    return high / low > 12 ? within([1]) : linearTicks(low, high, room / 60);
  }
  function limits(values, log) {
    const low = Math.min(...values), high = Math.max(...values);
    if (log) {
      const room = Math.max(Math.log10(high / low) * 0.08, 0.12);
      return [low / 10 ** room, high * 10 ** room];
    }
    const room = (high - low) * 0.08 || Math.abs(high) * 0.02 || 1;
    return [low - room, high + room];
  }

  // The picture

  const SHAPES = {
    diamond: "M0-6.4 6.4 0 0 6.4-6.4 0Z", triangle: "M0-6 6 5-6 5Z", square: "M-5-5H5V5H-5Z", down: "M0 6 6-5-6-5Z",
  };
  function mark(series, parent) {
    const group = draw("g", { class: `f${series.colour}` }, parent);
    const look = { class: `mark ${series.fill}` };
    if (series.marker === "circle") draw("circle", { ...look, r: 5.4 }, group);
    else draw("path", { ...look, d: SHAPES[series.marker] }, group);
    if (["dot", "eye", "target"].includes(series.fill)) {
      draw("circle", { class: series.fill === "eye" ? "dotted eye" : "dotted", r: 1.9 }, group);
    }
    return group;
  }
  const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const SIDES = [[1, 0], [1, -1], [0, -1], [1, 1], [-1, 0], [-1, -1], [0, 1], [-1, 1]];

  function label(svg, spots, box) {
    const taken = spots.map(([x, y]) => [x - 7, y - 7, x + 7, y + 7]);
    spots.forEach(([x, y, point], index) => {
      const said = [...new Set(point.entries.map((entry) => entry.label))].join(" / ");
      const text = draw("text", { class: "label", "text-anchor": "middle" }, svg);
      text.textContent = said;
      const half = text.getComputedTextLength() / 2;
      for (const [across, down] of SIDES) {
        const away = across && down ? 6 : 10;
        const cx = x + across * (half + away), cy = y + down * (7 + away);
        const place = [cx - half - 1, cy - 7, cx + half + 1, cy + 7];
        const inside = place[0] > box[0] && place[2] < box[2] && place[1] > box[1] && place[3] < box[3];
        if (inside && !taken.some((other, at) => at !== index && overlap(place, other))) {
          text.setAttribute("x", cx);
          text.setAttribute("y", cy + 4);
          taken.push(place);
          return;
        }
      }
      text.remove();  // the tooltip says it
    });
  }

  function render() {
    const focused = chart.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    chart.querySelectorAll("svg").forEach((old) => old.remove());
    hideTip();
    const entries = chosen();
    const points = pointsOf(entries);
    const width = chart.clientWidth, height = Math.max(320, Math.min(660, width * (width < 600 ? 1.05 : 0.66)));
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group" }, null);
    svg.setAttribute("aria-label", `${data.axes[state.y]} against ${data.axes[state.x]}`);
    chart.prepend(svg);
    const count = points.reduce((sum, point) => sum + point.entries.length, 0);
    const hidden = entries.length - count;
    byId("count").textContent = `${count} of ${data.entries.length} entries shown` +
      (hidden ? `; ${hidden} more without a published figure for these axes` : "");
    if (!points.length) {
      draw("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg).textContent = "Nothing to show";
      return;
    }
    const box = [52, 10, width - 10, height - 48];
    const [x0, x1] = limits(points.map((p) => p.x), state.log), [y0, y1] = limits(points.map((p) => p.y), false);
    const scale = state.log ? Math.log10 : (value) => value;
    const left = state.log ? x0 : -0.03 * x1;
    const across = (x) => box[0] + ((scale(x) - scale(left)) / (scale(x1) - scale(left))) * (box[2] - box[0]);
    const up = (y) => box[3] - ((y - y0) / (y1 - y0)) * (box[3] - box[1]);
    const room = box[2] - box[0];
    for (const tick of state.log ? logTicks(x0, x1, room) : linearTicks(left, x1, room / 80)) {
      draw("line", { class: "grid", x1: across(tick), x2: across(tick), y1: box[1], y2: box[3] }, svg);
      draw("text", { class: "tick", x: across(tick), y: box[3] + 18, "text-anchor": "middle" }, svg).textContent = human(tick);
    }
    const ticks = linearTicks(y0, y1, (box[3] - box[1]) / 46);
    const decimals = Math.max(...ticks.map((tick) => (String(tick).split(".")[1] || "").length));
    for (const tick of ticks) {
      draw("line", { class: "grid", x1: box[0], x2: box[2], y1: up(tick), y2: up(tick) }, svg);
      draw("text", { class: "tick", x: box[0] - 8, y: up(tick) + 4, "text-anchor": "end" }, svg).textContent = tick.toFixed(decimals);
    }
    draw("path", { class: "spine", fill: "none", d: `M${box[0]} ${box[1]}V${box[3]}H${box[2]}` }, svg);
    draw("text", { class: "axis", x: (box[0] + box[2]) / 2, y: height - 8, "text-anchor": "middle" }, svg).textContent = data.axes[state.x];
    const middle = (box[1] + box[3]) / 2;
    draw("text", { class: "axis", x: 0, y: 0, "text-anchor": "middle", transform: `translate(13 ${middle}) rotate(-90)` }, svg).textContent = data.axes[state.y];
    if (state.pareto) {
      const front = frontOf(points);
      const line = draw("polyline", { class: "front", points: front.map((p) => `${across(p.x)},${up(p.y)}`).join(" ") }, svg);
      line.dataset.front = front.map((p) => p.entries[0].id).join(" ");
    }
    const spots = points.map((point) => [across(point.x), up(point.y), point]);
    for (const [x, y, point] of spots) {
      const group = draw("g", { class: "point", tabindex: 0, role: "button", transform: `translate(${x} ${y})` }, svg);
      group.dataset.key = point.entries[0].id;
      group.setAttribute("aria-label", point.entries.map(sentence).join("; "));
      draw("circle", { class: "halo", r: 11 }, group);
      mark(data.series[point.entries[0].series], group);
      group.classList.toggle("open", state.open === group.dataset.key);
      group.addEventListener("mouseenter", () => showTip(point, x, y));
      group.addEventListener("mouseleave", hideTip);
      group.addEventListener("focus", () => showTip(point, x, y));
      group.addEventListener("blur", hideTip);
      group.addEventListener("click", () => open(point));
      group.addEventListener("keydown", (event) => keyed(event, group, point));
    }
    if (state.labels) label(svg, spots, box);
    if (focused) svg.querySelectorAll(".point").forEach((one) => one.dataset.key === focused && one.focus());
  }

  // One entry

  const AXES = data.names;
  const figures = (entry) => AXES.filter(([key]) => entry.text[key]).map(([key, name]) => `${entry.text[key]}\u00a0${name}`);
  const sentence = (entry) => `${entry.id}: ${figures(entry).join(", ")}`;

  function showTip(point, x, y) {
    tip.replaceChildren(...point.entries.flatMap((entry) => [
      element("p", { class: "name" }, entry.id),
      element("p", {}, figures(entry).join(" · ")),
      element("p", { class: "faint" }, `${entry.name}, ${data.series[entry.series].words}`),
    ]));
    tip.hidden = false;
    const room = chart.clientWidth;
    const left = x + 16 + tip.offsetWidth > room ? Math.max(0, x - 16 - tip.offsetWidth) : x + 16;
    tip.style.left = `${left}px`;
    tip.style.top = `${Math.max(0, y - tip.offsetHeight - 10)}px`;
  }
  function hideTip() { tip.hidden = true; }

  function keyed(event, group, point) {
    const all = [...chart.querySelectorAll(".point")];
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (step) all[(all.indexOf(group) + step + all.length) % all.length].focus();
    else if (event.key === "Enter" || event.key === " ") open(point);
    else if (event.key === "Escape") { hideTip(); close(); }
    else return;
    event.preventDefault();
  }
  function close() {
    state.open = null;
    details.hidden = true;
    chart.querySelectorAll(".point.open").forEach((one) => one.classList.remove("open"));
  }
  function open(point) {
    close();
    state.open = point.entries[0].id;
    details.replaceChildren(...point.entries.map(article));
    details.hidden = false;
    chart.querySelectorAll(".point").forEach((one) => one.classList.toggle("open", one.dataset.key === state.open));
    if (matchMedia("(max-width: 860px)").matches) details.scrollIntoView({ block: "nearest" });
  }
  function article(entry) {
    const list = element("dl");
    for (const [key, name] of AXES) {
      if (entry.text[key]) list.append(element("dt", {}, name), element("dd", {}, entry.text[key]));
    }
    for (const [name, text] of entry.facts) list.append(element("dt", {}, name), element("dd", {}, text));
    const links = element("ul");
    for (const [name, url, note, linked] of entry.links) {
      const shownAs = linked ? element("a", { href: url, rel: "noreferrer" }, url) : element("span", {}, url);
      links.append(element("li", {}, `${name}: `, shownAs, note ? ` (${note})` : ""));
    }
    return element("article", {}, element("h2", {}, entry.name), element("code", {}, entry.id), list, links);
  }

  // Controls

  function toggles() {
    const legend = byId("legend");
    const families = [...new Set(data.series.map((series) => series.family))];
    for (const family of families) {
      const members = [...data.series.keys()].filter((index) => data.series[index].family === family);
      const whole = element("input", { type: "checkbox", checked: "" });
      whole.dataset.family = family;
      legend.append(element("label", { class: "family" }, whole, family));
      const boxes = members.map((index) => {
        const series = data.series[index];
        const box = element("input", { type: "checkbox", checked: "" });
        box.dataset.series = index;
        const sign = draw("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" }, null);
        mark(series, sign);
        legend.append(element("label", { class: "series" }, box, sign, series.words));
        box.addEventListener("change", () => { show(index, box.checked); settle(); render(); });
        return box;
      });
      const settle = () => {
        const on = boxes.filter((box) => box.checked).length;
        whole.checked = on > 0;
        whole.indeterminate = on > 0 && on < boxes.length;
      };
      whole.addEventListener("change", () => {
        boxes.forEach((box, at) => { box.checked = whole.checked; show(members[at], whole.checked); });
        settle();
        render();
      });
    }
    legend.hidden = false;
  }
  function show(index, on) { on ? shown.add(index) : shown.delete(index); }

  for (const id of ["x", "y"]) {
    byId(id).value = state[id];
    byId(id).addEventListener("change", () => { state[id] = byId(id).value; render(); });
  }
  for (const id of ["log", "labels", "pareto"]) {
    byId(id).checked = state[id];
    byId(id).addEventListener("change", () => { state[id] = byId(id).checked; render(); });
  }
  byId("find").addEventListener("input", () => { state.find = byId("find").value; render(); });
  byId("controls").hidden = false;
  toggles();
  render();
  let width = chart.clientWidth;
  new ResizeObserver(() => {
    if (chart.clientWidth !== width) { width = chart.clientWidth; render(); }
  }).observe(chart);
  addEventListener("beforeprint", render);
})();
