"use strict";
// Everything that comes from a search is put in as text, never as markup.
const EVERY = 3000, MOST_ROWS = 200;
const $ = id => document.getElementById(id);
const token = location.hash.slice(1);
const rows = new Map();
let objectives = [], front = new Set(), seen = 0, now = null, shown = null, curves = null;
const COL = { id: 0, generation: 1, parent: 2, kind: 3, state: 4, stage: 5, percent: 6, values: 7, reason: 8 };

async function get(path) {
  const answer = await fetch(path);
  const told = await answer.json();
  if (told.error) throw new Error(told.error);
  return told;
}
function element(name, text, kind) {
  const one = document.createElement(name);
  if (text !== undefined && text !== null) one.textContent = text;
  if (kind) one.className = kind;
  return one;
}
const figure = (value, digits = 2) => value === null || value === undefined ? "" :
  value.toLocaleString("en", { maximumFractionDigits: digits });
function span(seconds) {
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  return days ? `${days} d ${hours % 24} h` : hours ? `${hours} h ${minutes % 60} min` : `${minutes} min`;
}
function table(into, heads, lines) {
  const head = element("thead"), body = element("tbody"), top = element("tr");
  for (const name of heads) top.append(element("th", name));
  head.append(top);
  for (const { cells, id } of lines) {
    const line = element("tr");
    for (const cell of cells)
      line.append(element("td", typeof cell === "number" ? figure(cell) : cell,
        typeof cell === "number" ? "n" : cell && cell.length > 40 ? "long" : ""));
    if (id !== undefined) { line.dataset.id = id; line.tabIndex = 0; }
    body.append(line);
  }
  into.replaceChildren(head, body);
}

function header() {
  const it = now.experiment;
  document.title = `${it.name}: nasd`;
  $("name").textContent = it.name;
  const pause = it.pause ? `, ${it.pause === "pause" ? "paused" : "draining"} ${it.pause_note}` : "";
  const why = it.reason ? `: ${it.reason}` : it.hold ? `, on hold: ${it.hold}` : "";
  const where = now.generation === null ? now.phase : `generation ${now.generation} of ${it.generations}, ${now.phase}`;
  $("what").textContent = `${it.state}${pause}${why} · ${where}${it.served ? "" : " · no daemon serves it"}`;
  const best = now.gained.quality === null ? "" : ` · best ${figure(now.gained.quality)}`;
  const budget = now.gpu_hours.budget === null ? "" : ` of ${figure(now.gpu_hours.budget)}`;
  $("figures").textContent = `${span(it.seconds)} · ${figure(now.gpu_hours.used)}${budget} ${now.gpu_hours.unit}${best}`;
  $("notices").replaceChildren(...now.notices.map(one => element("li", one.text ?? JSON.stringify(one))));
  $("steer").hidden = !token;
  table($("slots"), ["slot", "candidate", "stage", "doing", ""], now.slots.map(slot => {
    const at = now.running.find(one => one.slots.includes(slot.slot));
    const beat = at && at.beat;
    const doing = slot.quarantine ?? (at ? (beat ? beat.doing : at.waits || "starting") : "free");
    const share = beat && beat.steps ? `${Math.floor(100 * beat.step / beat.steps)} %` : "";
    return { cells: [slot.slot, at ? String(at.candidate) : "", at ? at.stage : "", doing, share], id: at && at.candidate };
  }));
  $("events").replaceChildren(...now.events.slice().reverse().map(one => {
    const line = element("li"), when = element("time", new Date(1000 * one.at).toLocaleString());
    const who = one.candidate === null ? "" : `candidate ${one.candidate} ${one.stage ?? ""} `;
    line.append(when, `${who}${one.event} ${one.detail}`);
    return line;
  }));
}

function wanted() {
  const number = $("find").value.trim(), which = $("which").value, newest = now ? now.generation : null;
  const all = [...rows.values()].filter(row => row[COL.kind] !== "screening");
  if (number) return all.filter(row => String(row[COL.id]) === number);
  return all.filter(row => ({
    newest: row[COL.generation] === newest, front: front.has(row[COL.id]), all: true,
    running: row[COL.state] === "running", scored: row[COL.state] === "scored",
  })[which]);
}
function list() {
  const found = wanted().sort((a, b) => b[COL.id] - a[COL.id]);
  $("count").textContent = found.length > MOST_ROWS ? `the newest ${MOST_ROWS} of ${found.length}` : `${found.length}`;
  table($("all"), ["", "gen", "parent", "state", "stage", "% of baseline", ...objectives.map(o => `${o.name} ${o.unit}`), ""],
    found.slice(0, MOST_ROWS).map(row => ({
      cells: [String(row[COL.id]), row[COL.generation] === null ? "baseline" : String(row[COL.generation]),
        row[COL.parent] === null ? "" : String(row[COL.parent]), row[COL.state] + (front.has(row[COL.id]) ? " ★" : ""),
        row[COL.stage], row[COL.percent], ...objectives.map((_, i) => row[COL.values] ? row[COL.values][i] : null), row[COL.reason]],
      id: row[COL.id],
    })));
}

// -- drawings -------------------------------------------------------------------------------
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
function plot(canvas, xs, ys, draw, words) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * ratio; canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio); pen.font = "12px system-ui, sans-serif"; pen.fillStyle = colour("dim");
  if (!xs.length) { pen.fillText("nothing yet", 8, 20); return; }
  const range = list => {
    let low = Infinity, high = -Infinity;
    for (const one of list) { if (one < low) low = one; if (one > high) high = one; }
    const pad = (high - low || Math.abs(high) || 1) * .05;
    return [low - pad, high + pad];
  };
  const [x0, x1] = range(xs), [y0, y1] = range(ys), left = 46, below = 34, right = 26;
  const x = value => left + (value - x0) / (x1 - x0) * (width - left - right);
  const y = value => height - below - (value - y0) / (y1 - y0) * (height - below - 8);
  pen.strokeStyle = colour("line"); pen.lineWidth = 1;
  for (let i = 0; i <= 4; i++) {
    const at = y0 + (y1 - y0) * i / 4, to = x0 + (x1 - x0) * i / 4;
    pen.beginPath(); pen.moveTo(left, y(at)); pen.lineTo(width - right, y(at)); pen.stroke();
    pen.textAlign = "right"; pen.fillText(figure(at, 2), left - 5, y(at) + 4);
    pen.textAlign = "center"; pen.fillText(figure(to, 1), x(to), height - below + 15);
  }
  pen.fillText(words, width / 2, height - 5, width - 8);
  draw(pen, x, y);
}
function dot(pen, x, y, size, name) {
  pen.fillStyle = colour(name); pen.beginPath(); pen.arc(x, y, size, 0, 7); pen.fill();
}
function drawFront() {
  const axis = Math.max(0, $("axis").selectedIndex), one = objectives[axis];
  const found = [...rows.values()].filter(row => row[COL.kind] === "candidate" && row[COL.values] && row[COL.values][axis] !== null);
  const px = row => row[COL.percent], py = row => row[COL.values][axis];
  plot($("front"), found.map(px), found.map(py), (pen, x, y) => {
    const newest = now ? now.generation : null;
    const colours = [["grey", row => row[COL.generation] !== newest], ["blue", row => row[COL.generation] === newest]];
    for (const [name, is] of colours) {
      pen.fillStyle = colour(name);
      for (const row of found) if (is(row)) pen.fillRect(x(px(row)) - 2, y(py(row)) - 2, 4, 4);
    }
    const best = found.filter(row => front.has(row[COL.id])).sort((a, b) => px(a) - px(b));
    pen.strokeStyle = colour("orange"); pen.beginPath();
    best.forEach((row, i) => i ? pen.lineTo(x(px(row)), y(py(row))) : pen.moveTo(x(px(row)), y(py(row))));
    pen.stroke();
    for (const row of best) dot(pen, x(px(row)), y(py(row)), 4, "orange");
    for (const row of found) if (row[COL.generation] === null) dot(pen, x(px(row)), y(py(row)), 5, "green");
  }, `parameters, % of the baseline's; up: ${one ? `${one.name} in ${one.unit}` : ""}`);
}
function drawCurves() {
  const lines = curves ? Object.entries(curves.curves) : [], all = lines.flatMap(([, line]) => line);
  plot($("curves"), all.map(p => p[0]), all.map(p => p[1]), (pen, x, y) => {
    for (const [id, line] of lines) {
      const row = rows.get(Number(id)), state = row ? row[COL.state] : "";
      pen.strokeStyle = colour(state === "cut" || state === "failed" ? "grey" : "blue");
      pen.beginPath();
      line.forEach(([step, loss], i) => i ? pen.lineTo(x(step), y(loss)) : pen.moveTo(x(step), y(loss)));
      pen.stroke();
      if (line.length === 1) dot(pen, x(line[0][0]), y(line[0][1]), 2, "blue");
    }
  }, "steps; up: evaluation loss (cut: grey)");
}
function drawVolume() {
  const found = now ? now.generations : [];
  plot($("volume"), found.map(o => o.generation), found.map(o => o.hypervolume), (pen, x, y) => {
    pen.strokeStyle = colour("blue"); pen.beginPath();
    found.forEach((o, i) => i ? pen.lineTo(x(o.generation), y(o.hypervolume)) : pen.moveTo(x(o.generation), y(o.hypervolume)));
    pen.stroke();
    for (const o of found) dot(pen, x(o.generation), y(o.hypervolume), 3, "blue");
  }, "generation");
}

// -- a candidate ----------------------------------------------------------------------------
async function show(id) {
  shown = id;
  const told = await get(`/api/candidate?id=${encodeURIComponent(id)}`), about = $("about");
  if (shown !== id) return;
  $("one").hidden = false;
  $("t-one").textContent = `Candidate ${id}`;
  const row = rows.get(Number(id)), state = row ? row[COL.state] : "";
  $("cut").hidden = !token || !["pending", "running", "waiting", "paused"].includes(state);
  $("retry").hidden = !token || state !== "failed";
  about.replaceChildren();
  for (const [name, value] of Object.entries(told)) {
    if (value === null || (Array.isArray(value) && !value.length)) continue;
    about.append(element("h3", name.replaceAll("_", " ")));
    if (Array.isArray(value) && typeof value[0] === "object" && !Array.isArray(value[0])) {
      const heads = Object.keys(value[0]).filter(head => head !== "facts"), place = element("div", null, "scroll"), one = element("table");
      table(one, heads.map(head => head.replaceAll("_", " ")), value.map(line => ({ cells: heads.map(head => plain(line[head])) })));
      place.append(one); about.append(place);
    } else about.append(element("pre", plain(value)));
  }
}
function plain(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return value;
  if (Array.isArray(value)) return value.length > 12 ? `${value.length} values` : value.map(plain).join(", ");
  return typeof value === "object" ? Object.entries(value).map(([name, one]) => `${name}: ${plain(one)}`).join("; ") : String(value);
}
async function ask(action, candidate) {
  const words = candidate === undefined ? `${action} the search?` : `${action} candidate ${candidate}?`;
  if (!confirm(words)) return;
  const answer = await fetch("/api/ask", {
    method: "POST", headers: { "X-Nasd-Token": token, "Content-Type": "application/json" },
    body: JSON.stringify(candidate === undefined ? { action } : { action, candidate }),
  });
  const told = await answer.json();
  $("answer").textContent = told.answer ?? told.error;
  await look();
}

// -- the loop -------------------------------------------------------------------------------
function choices(select, names, keep) {
  if (select.options.length === names.length) return;
  const before = select.value;
  select.replaceChildren(...names.map(name => new Option(name)));
  if (keep && names.includes(before)) select.value = before;
}
async function look() {
  const [state, table] = await Promise.all([get("/api/now"), get(`/api/candidates?after=${seen}`)]);
  const before = now ? now.generation : undefined;
  now = state;
  if (table.whole) rows.clear();
  for (const row of table.rows) rows.set(row[COL.id], row);
  const news = table.whole || table.rows.length;
  objectives = table.objectives; front = new Set(table.front); seen = table.event;
  header();
  choices($("axis"), objectives.map(one => one.name), true);
  const numbers = now.generation === null ? [] : Array.from({ length: now.generation + 1 }, (_, i) => String(now.generation - i));
  choices($("generation"), numbers, before === undefined ? false : $("generation").value !== String(before));
  if (news) { list(); drawFront(); drawVolume(); await loadCurves(); }
  if (shown !== null && news) await show(shown);
  document.body.dataset.seen = String(seen);
}
async function loadCurves() {
  if (!$("generation").value) { drawCurves(); return; }
  curves = await get(`/api/curves?generation=${$("generation").value}`);
  drawCurves();
}
async function loop() {
  if (!document.hidden) {
    try { await look(); } catch (error) { $("what").textContent = `no answer: ${error.message}`; }
  }
  setTimeout(loop, EVERY);
}
function chosen(event) {
  const line = event.target.closest("tr[data-id]");
  if (!line || (event.type === "keydown" && event.key !== "Enter")) return;
  show(line.dataset.id).then(() => $("one").scrollIntoView({ block: "start" }));
}
addEventListener("DOMContentLoaded", () => {
  for (const id of ["all", "slots"]) { $(id).addEventListener("click", chosen); $(id).addEventListener("keydown", chosen); }
  $("which").addEventListener("change", list);
  $("find").addEventListener("input", list);
  $("axis").addEventListener("change", drawFront);
  $("generation").addEventListener("change", loadCurves);
  $("close").addEventListener("click", () => { shown = null; $("one").hidden = true; });
  $("cut").addEventListener("click", () => ask("cut", Number(shown)));
  $("retry").addEventListener("click", () => ask("retry", Number(shown)));
  for (const button of document.querySelectorAll("[data-ask]")) button.addEventListener("click", () => ask(button.dataset.ask));
  addEventListener("resize", () => { drawFront(); drawCurves(); drawVolume(); });
  loop();
});
