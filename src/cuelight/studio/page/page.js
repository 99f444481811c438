// The page of a Promptor conversation.  The server holds the state; this shows it and sends what the designer does.

const STEPS = { engage: "Ask", draft: "Draft", criticise: "Criticise", test: "Test", refine: "Refine", finish: "Finish" };
const WAITING = { answer: "engage", examples: "engage", verdict: "test", done: "finish" };

let state = null;
let shown = null; // the version looked at; null: the newest, at the end the best
let composed = ""; // what the composer was made for
let tried = null; // the last answer of the trial box
let changed = ""; // the slot that is being changed
let lines = ""; // what of the dialogue was drawn
let timer = 0;

const place = (id) => document.getElementById(id);

// An element; text is always put in as text.
function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, body === undefined ? {} : {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    });
  } catch {
    throw new Error("The server does not answer. Start it again with the same command: the conversation is kept.");
  }
  let found;
  try {
    found = await answer.json();
  } catch {
    throw new Error(`The server failed (${answer.status}).`);
  }
  if (!answer.ok) throw new Error(found.error || `The server failed (${answer.status}).`);
  return found;
}

async function send(path, body = {}) {
  try {
    const before = state.versions.length;
    take(await ask(path, body));
    if (state.versions.length !== before) shown = null;
    return true;
  } catch (error) {
    complain(error.message, false);
    return false;
  }
}

async function look() {
  clearTimeout(timer);
  try {
    take(await ask("/api/state"));
  } catch (error) {
    complain(error.message, false);
    timer = setTimeout(look, 2000);
  }
}

function take(found) {
  const grown = state && found.versions.length !== state.versions.length;
  if (grown) shown = null;
  state = found;
  draw();
  clearTimeout(timer);
  timer = setTimeout(look, state.busy ? 350 : 4000);
}

function complain(text, again) {
  const notice = place("notice");
  notice.hidden = !text;
  notice.replaceChildren(h("span", {}, text || ""));
  const close = h("button", { onclick: () => { notice.hidden = true; } }, "Close");
  if (text) notice.append(again ? h("button", { id: "retry", onclick: () => send("/api/retry") }, "Try again") : close);
}

function draw() {
  const stuck = !state.turn && !state.busy;
  complain(state.error || (stuck ? "This step was not finished." : ""), stuck);
  drawHeader();
  drawDialogue();
  drawComposer();
  drawBrief();
  drawVersions();
  drawTests();
  drawPrompt();
  const now = `${state.dialogue.length} ${state.busy} ${place("composer").childElementCount}`;
  if (now !== lines) place("dialogue").scrollTop = place("dialogue").scrollHeight;
  lines = now;
}

function drawHeader() {
  const now = WAITING[state.phase] || state.phase;
  const names = Object.keys(STEPS);
  place("steps").replaceChildren(...names.map((name) => {
    const past = names.indexOf(name) < names.indexOf(now) || (state.phase === "done" && state.steps.includes(name));
    const is = name === now && state.phase !== "done" ? "now" : past ? "past" : "";
    return h("li", { class: is, "aria-current": is === "now" ? "step" : null }, STEPS[name]);
  }));
  const models = state.agent === state.target ? state.target : `${state.agent} writes for ${state.target}`;
  const money = state.spent.money ? `, $${state.spent.money.toFixed(4)}` : "";
  const calls = Object.values(state.calls).reduce((sum, count) => sum + count, 0);
  place("models").textContent = `${models} · ${calls} calls${money}`;
}

function drawDialogue() {
  const box = place("dialogue");
  const said = state.dialogue.map((line) => h("div", { class: `line ${line.who}` }, line.text));
  if (state.busy) said.push(h("div", { class: "line promptor busy" }, `${state.busy} …`));
  const at = box.scrollTop;
  box.replaceChildren(...said);
  box.scrollTop = at;
}

// ---- the composer: made anew only when something else is asked, so that what is being typed stays ----

function drawComposer() {
  const box = place("composer");
  const turn = state.turn;
  const key = JSON.stringify([turn && turn.kind, turn && turn.slot, turn && turn.options, state.dialogue.length]);
  if (key !== composed) {
    composed = key;
    const made = { answer: answering, examples: exemplifying, verdict: judging, done: ending };
    box.replaceChildren(...(turn ? made[turn.kind](turn) : []));
    const first = box.querySelector("textarea, input[type=text]");
    if (first && matchMedia("(min-width: 900px)").matches) first.focus({ preventScroll: true });
  }
  for (const field of box.querySelectorAll("button, textarea, input")) field.disabled = Boolean(state.busy);
}

function typing(label, rows, submit) {
  const field = h("textarea", { rows, "aria-label": label, placeholder: label });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      submit();
    }
  });
  return field;
}

function answering(turn) {
  const submit = () => send("/api/reply", { text: field.value.trim() || "?" });
  const field = typing("Your answer", 2, submit);
  const goal = turn.slot === "goals";
  return [
    turn.options.length
      ? h("div", { class: "row" }, turn.options.map((option) =>
        h("button", { class: "chip", onclick: () => send("/api/reply", { text: option }) }, option)))
      : null,
    field,
    h("div", { class: "row" },
      h("button", { id: "suggest", onclick: () => send("/api/suggest") }, "Suggest"),
      goal ? null : h("button", { id: "skip", onclick: () => send("/api/reply", { text: "skip" }) }, "Leave open"),
      h("button", { id: "send", class: "main push", onclick: submit }, "Send")),
  ].filter(Boolean);
}

function exemplifying() {
  const names = [...state.fields, "wanted"];
  const grid = h("div", { class: "grid" });
  grid.style.gridTemplateColumns = `repeat(${names.length}, minmax(0, 1fr))`;
  const label = (name) => (name === "wanted" ? "wanted answer" : state.fields.length > 1 ? name : "typed text");
  const add = () => {
    for (const name of names) {
      const cell = h("input", { type: "text", "data-name": name, "aria-label": label(name), placeholder: label(name) });
      cell.addEventListener("paste", (event) => pasted(event, cell));
      grid.append(cell);
    }
  };
  const pasted = (event, cell) => {
    const lines = event.clipboardData.getData("text").split(/\r?\n/).filter((line) => line.trim());
    if (lines.length < 2 && !/\t|=>/.test(lines[0] || "")) return;
    event.preventDefault();
    let at = [...grid.children].indexOf(cell);
    at -= at % names.length;
    for (const line of lines) {
      while (grid.children.length < at + names.length) add();
      line.split(/\t|=>|\|/).slice(0, names.length).forEach((part, k) => { grid.children[at + k].value = part.trim(); });
      at += names.length;
    }
  };
  for (let k = 0; k < 4; k += 1) add();
  const submit = () => {
    const rows = [];
    for (let k = 0; k < grid.children.length; k += names.length) {
      const row = Object.fromEntries(names.map((name, i) => [name, grid.children[k + i].value.trim()]));
      if (Object.values(row).some(Boolean)) rows.push(row);
    }
    if (rows.length) send("/api/reply", { examples: rows });
    else complain("Fill in one line at least, or go on without examples.", false);
  };
  const file = h("input", { type: "file", hidden: true, accept: ".csv,.tsv,.json,.jsonl,.txt" });
  file.addEventListener("change", async () => {
    if (file.files[0]) send("/api/file", { name: file.files[0].name, text: await file.files[0].text() });
    file.value = "";
  });
  return [
    grid, file,
    h("div", { class: "row" },
      h("button", { onclick: () => { add(); grid.scrollTop = grid.scrollHeight; } }, "One more line"),
      h("button", { onclick: () => file.click() }, "From a file"),
      h("button", { id: "without", onclick: () => send("/api/reply", { text: "none" }) }, "Go on without"),
      h("button", { id: "send", class: "main push", onclick: submit }, "Use these")),
    h("p", { class: "muted" }, "Lines can be pasted from a table, or as: typed => wanted."),
  ];
}

function judging() {
  const submit = () => send("/api/reply", { text: field.value.trim() || "again" });
  const field = typing("What should change? Or more examples: typed => wanted. Empty: let it try again", 2, submit);
  const count = state.projected;
  return [
    field,
    h("div", { class: "row" },
      h("button", { id: "send", class: "push", onclick: submit }, "Refine"),
      h("button", { id: "accept", class: "main", onclick: () => send("/api/reply", { verdict: { accept: true } }) }, "Accept")),
    h("p", { class: "muted" }, state.round < state.rounds
      ? `Still to come, at most: ${count.agent} calls of the writing model, ${count.target} of the target.`
      : "The last round: whatever you say, the best version is taken now."),
  ];
}

function ending() {
  return [h("div", { class: "row" },
    h("button", { id: "more", onclick: () => send("/api/more") }, "Another round"),
    h("button", { id: "restart", onclick: () => {
      if (confirm("Begin anew? This conversation is kept in the folder 'earlier'.")) { shown = null; tried = null; send("/api/restart"); }
    } }, "Begin anew"))];
}

// ---- what is known ----

function drawBrief() {
  const filled = state.slots.filter((slot) => slot.text).length;
  const cards = state.slots.map((slot) => {
    const asked = slot.name === state.asked;
    const is = slot.text ? "slot filled" : asked ? "slot asked" : "slot";
    const text = slot.text ? h("span", {}, slot.text)
      : h("i", {}, slot.text === "" ? "left open" : asked ? "being asked" : "not asked yet");
    const locked = slot.text === null || Boolean(state.busy);
    if (slot.name === changed && !locked) return changing(slot);
    return h("button", { class: is, "data-slot": slot.name, title: "Change", disabled: locked,
      onclick: () => { changed = slot.name; draw(); place("change").focus(); } },
    h("b", {}, slot.title), text);
  });
  keep("brief", [h("h2", {}, "Brief ", h("small", {}, `${filled} of ${cards.length} filled`)), h("div", { class: "slots" }, cards)]);
}

function changing(slot) {
  const close = () => { changed = ""; draw(); };
  const save = async () => {
    const text = field.value.trim();
    if (text === (slot.text || "") || await send("/api/slot", { slot: slot.name, text })) close();
  };
  const field = h("textarea", { id: "change", rows: 3, "aria-label": slot.question });
  field.value = slot.text || "";
  field.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  return h("div", { class: "slot asked" }, h("b", {}, slot.question), field, h("div", { class: "row" },
    h("button", { id: "keep", class: "main", onclick: save }, "Keep"), h("button", { onclick: close }, "Cancel")));
}

const figure = (score) => (score === null || score === undefined ? "–" : Number(score).toFixed(2));
const current = () => {
  if (shown !== null) return shown;
  return state.phase === "done" ? state.best : state.versions.length - 1;
};

function drawVersions() {
  if (!state.versions.length) return keep("versions", []);
  const rows = state.versions.map((version, number) => {
    const bar = h("span", {});
    bar.style.width = `${100 * (version.score || 0)}%`;
    const is = `version${version.best ? " best" : ""}${number === current() ? " shown" : ""}`;
    return h("button", { class: is, "data-version": number + 1, "aria-pressed": String(number === current()),
      onclick: () => { shown = number; draw(); } },
    h("b", {}, `${number + 1}`), h("span", {}, version.origin), h("span", { class: "bar" }, bar),
    h("span", { class: "figure" }, figure(version.score)), version.best && version.score !== null ? h("span", { class: "tag" }, "★ best") : "");
  });
  const measured = Object.entries(state.reported).map(([name, score]) => `${name} ${figure(score)}`).join(", ");
  const how = state.metric === "exact" ? "share of right answers" : `mean ${state.metric}`;
  keep("versions", [
    h("h2", {}, "Versions ", h("small", {}, `${how} on the tests · round ${state.round} of ${state.rounds}`)), ...rows,
    measured ? h("p", { class: "muted", id: "reported" }, `On examples that chose nothing: ${measured}.`) : "",
  ]);
}

function drawTests() {
  const version = state.versions[current()];
  const tests = version ? state.cases.filter((one) => one.number in version.outputs) : [];
  if (!tests.length) return keep("tests", []);
  const newest = current() === state.versions.length - 1 && state.turn && state.turn.kind === "verdict" && !state.busy;
  const rows = tests.map((one) => {
    const score = version.scores[one.number];
    const mark = version.marks[one.number];
    const button = (good) => h("button", {
      class: mark === good ? "on" : "", disabled: !newest, "aria-pressed": String(mark === good),
      onclick: () => send("/api/reply", { verdict: { marks: { [one.number]: good } } }),
    }, good ? "good" : "bad");
    const cell = score === undefined
      ? h("td", { class: "marks" }, button(true), " ", button(false))
      : h("td", { class: `figure ${score >= 0.75 ? "high" : score < 0.4 ? "low" : ""}` }, figure(score));
    return h("tr", {}, state.fields.map((name) => h("td", {}, one.values[name])),
      h("td", {}, one.wanted === null ? "" : one.wanted), h("td", {}, version.outputs[one.number]), cell);
  });
  const heads = [...(state.fields.length > 1 ? state.fields : ["typed"]), "wanted", "answer", "score"];
  const use = state.cases.reduce((count, one) => ({ ...count, [one.use]: (count[one.use] || 0) + 1 }), {});
  const others = [use.show ? `${use.show} shown in prompts` : "", use.report ? `${use.report} kept for the end` : ""].filter(Boolean);
  keep("tests", [
    h("h2", {}, `Tests of version ${current() + 1} `, h("small", {}, [`${tests.length} inputs`, ...others].join(" · "))),
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((head) => h("th", {}, head)))),
      h("tbody", {}, rows))),
  ]);
}

function marked(text) {
  const known = new RegExp(`(\\{(?:${state.fields.join("|")})\\})`);
  return text.split(known).map((part) => (known.test(part) ? h("mark", {}, part) : part));
}

function drawPrompt() {
  const version = state.versions[current()];
  if (!version) return keep("prompt", []);
  const editable = state.turn && (state.turn.kind === "verdict" || state.turn.kind === "done") && !state.busy;
  const edit = () => {
    const field = h("textarea", { rows: 12, "aria-label": "Prompt" });
    field.value = version.text;
    const done = h("div", { class: "row" },
      h("button", { class: "main", id: "save", onclick: async () => { if (await send("/api/version", { text: field.value })) drawPrompt.open = false; } }, "Test it"),
      h("button", { onclick: () => { drawPrompt.open = false; draw(); } }, "Leave it"));
    drawPrompt.open = true;
    place("prompt").dataset.html = "";
    place("prompt").replaceChildren(h("h2", {}, "A version of your own"), field, done);
    field.focus();
  };
  if (drawPrompt.open && editable) return undefined;
  drawPrompt.open = false;
  const copy = async (event) => {
    await copied(version.text);
    event.target.textContent = "Copied";
    setTimeout(() => { event.target.textContent = "Copy"; }, 1500);
  };
  const checklist = Object.entries(version.checklist).map(([name, score]) => `${name} ${score}/5`).join(", ");
  return keep("prompt", [
    h("h2", {}, `Prompt, version ${current() + 1} `, h("small", {}, version.best && version.score !== null ? "the best so far" : ""),
      h("span", { class: "row" },
        h("button", { id: "copy", onclick: copy }, "Copy"),
        h("a", { class: "button", id: "download", href: "/prompt.txt", download: "prompt.txt" }, "Download best"),
        version.best ? "" : h("button", { id: "use", disabled: !(editable && state.turn.kind === "verdict"),
          title: "Take this one, whatever the scores say",
          onclick: () => send("/api/reply", { verdict: { accept: true, use: current() + 1 } }) }, "Use this one"),
        h("button", { id: "edit", disabled: !editable, onclick: edit }, "Edit"))),
    h("pre", {}, marked(version.text)),
    version.defects.length ? h("ul", { class: "defects" }, version.defects.map((text) => h("li", {}, text))) : "",
    checklist ? h("p", { class: "muted" }, `The writing model's own view, which decides nothing: ${checklist}.`) : "",
    ...(state.busy ? [] : trial()),
  ]);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // an address that is not loopback has no clipboard
    const field = h("textarea", {});
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

function trial() {
  const fields = state.fields.map((name) => h("input", { type: "text", "data-try": name, "aria-label": `Try: ${name}`,
    placeholder: state.fields.length > 1 ? name : "Try the best prompt on a text of yours" }));
  if (tried) fields.forEach((field, k) => { field.value = tried.values[state.fields[k]] || ""; });
  const answer = h("p", { class: "answer", id: "answer", hidden: !tried }, tried ? tried.answer : "");
  const go = async () => {
    button.disabled = true;
    try {
      const values = Object.fromEntries(fields.map((field, k) => [state.fields[k], field.value]));
      tried = { values, answer: (await ask("/api/try", { values })).answer || "(an empty answer)" };
      answer.textContent = tried.answer;
      answer.hidden = false;
    } catch (error) {
      complain(error.message, false);
    }
    button.disabled = false;
  };
  const button = h("button", { id: "try", onclick: go }, "Try");
  fields.forEach((field) => field.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); }));
  const row = h("div", { class: "row" }, ...fields, button);
  row.style.flexWrap = "nowrap";
  return [h("div", {}, row, answer)];
}

// Put children into a card, unless they are the same as before: what is being typed or selected there stays.
function keep(id, children) {
  const box = place(id);
  const made = h("div", {}, ...children.filter((child) => child !== ""));
  if (box.dataset.html === made.innerHTML) return;
  box.dataset.html = made.innerHTML;
  box.replaceChildren(...made.childNodes);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
look();
