
"use strict";
(async () => {
  const PAGE_ROWS = 50, MOST_WORDS = 1500;
  const at = (id) => document.getElementById(id);

  // Text only ever becomes a text node: nothing here reads markup.
  const node = (tag, attributes, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
    return made;
  };

  const themes = ["system", "light", "dark"];
  const themeButton = at("theme");
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "system") + 1) % themes.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    themeButton.textContent = `Theme: ${next}`;
  });

  // An explanation stands below its number, or above it where there is no room below. Escape hides it, and of a number
  // with the focus and another under the pointer only the latter is explained.
  const root = document.documentElement, widest = 384;
  const place = (number) => {
    const box = number.getBoundingClientRect(), below = box.bottom + 170 < window.innerHeight;
    const left = Math.max(8, Math.min(box.left, window.innerWidth - Math.min(widest, window.innerWidth - 32) - 16));
    number.style.setProperty("--why-left", `${left}px`);
    number.style.setProperty("--why-top", below ? `${box.bottom + 6}px` : "auto");
    number.style.setProperty("--why-bottom", below ? "auto" : `${window.innerHeight - box.top + 6}px`);
  };
  const explain = (event) => {
    const number = event.target.closest?.(".why");
    if (!number) return;
    root.classList.remove("dismissed");
    root.classList.toggle("pointing", event.type === "mouseover");
    place(number);
  };
  for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, explain);
  document.addEventListener("scroll", () => { if (document.activeElement.matches(".why")) place(document.activeElement); }, { capture: true, passive: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") root.classList.add("dismissed"); });

  const unpacked = async () => {
    const packed = Uint8Array.from(atob(at("data").textContent), (letter) => letter.charCodeAt(0));
    const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(plain).text());
  };

  let data;
  try {
    data = await unpacked();
  } catch (error) {
    at("problem").hidden = false;
    at("problem").textContent = `The samples cannot be unpacked by this browser: ${error.message}`;
    return;
  }
  const { variants, metrics, lower, cases, epochs } = data;
  const state = { rows: cases, page: 0, metric: 0, open: new Set() };

  const isRight = (number, metric) => (lower.includes(metric) ? number <= 0 : number >= 1);
  const value = (result) => (result.scores || [])[state.metric] ?? null;
  const verdictOf = (result) => (value(result) === null ? "none" : isRight(value(result), state.metric) ? "right" : "wrong");
  const rounded = (number) => String(Math.round(number * 1000) / 1000);
  const statusOf = (result) => (result.code ? `${result.status}: ${result.code}` : result.status);

  // --- finding ---------------------------------------------------------------------------------------------------

  const textOf = (each) => {
    if (each.search === undefined) {
      const parts = [each.id, each.group, each.input, ...(each.target || [])];
      for (const result of each.results) {
        parts.push(...(result.values || []), result.code, result.message, ...Object.values(result.details || {}), ...Object.values(result.problems || {}));
      }
      each.search = parts.filter((part) => part !== null && part !== undefined).join("\n").toLowerCase();
    }
    return each.search;
  };

  const disagree = (each) => new Set(each.results.map((result) => value(result))).size > 1;

  const wanted = () => ({
    words: at("text").value.toLowerCase().split(/\s+/).filter(Boolean),
    variant: at("variant").value,
    status: at("status").value,
    verdict: at("verdict").value,
  });

  const fits = (each, want) => {
    if (want.verdict === "differ" && !disagree(each)) return false;
    const some = each.results.some((result) =>
      (want.variant === "" || variants[result.variant] === want.variant) &&
      (want.status === "" || result.status === want.status || statusOf(result) === want.status) &&
      (want.verdict === "" || want.verdict === "differ" || verdictOf(result) === want.verdict));
    return some && (want.words.length === 0 || want.words.every((word) => textOf(each).includes(word)));
  };

  const search = () => {
    state.metric = Math.max(0, metrics.indexOf(at("metric").value));
    const want = wanted();
    state.rows = cases.filter((each) => fits(each, want));
    state.page = 0;
    draw();
  };

  // --- differences -----------------------------------------------------------------------------------------------

  // Words of the answer beside words of the target, by their longest common sequence.
  const wordDiff = (target, answer) => {
    const a = target.match(/\s+|[^\s]+/g) || [], b = answer.match(/\s+|[^\s]+/g) || [];
    if (a.length > MOST_WORDS || b.length > MOST_WORDS) return [answer];
    const width = b.length + 1, common = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        common[i * width + j] = a[i] === b[j] ? common[(i + 1) * width + j + 1] + 1 : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
      }
    }
    const parts = [];
    const add = (kind, text) => {
      const last = parts[parts.length - 1];
      if (last && last[0] === kind) last[1] += text;
      else parts.push([kind, text]);
    };
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { add("", a[i]); i++; j++; }
      else if (j >= b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) add("del", a[i++]);
      else add("ins", b[j++]);
    }
    return parts.map(([kind, text]) => (kind ? node(kind, {}, text) : text));
  };

  const fieldCell = (each, result, place) => {
    const answer = (result.values || [])[place] ?? null, target = (each.target || [])[place] ?? null;
    if (!result.values) return node("td", { class: "faint" }, place ? "" : withoutAnswer(result));
    if (target === null) return node("td", { class: "text" }, answer === null ? node("span", { class: "faint" }, "absent") : answer);
    if (!(result.differing || []).includes(place)) return node("td", { class: "text agrees" }, node("span", { class: "flag right" }, "="), answer);
    const shown = answer === null ? [node("span", { class: "faint" }, "absent")] : [target, answer].some((text) => /\s/.test(text)) ? wordDiff(target, answer) : [answer];
    return node("td", { class: "text differs" }, node("span", { class: "flag wrong" }, "≠", node("span", { class: "hidden" }, " differs from the target: ")), shown);
  };

  const withoutAnswer = (result) =>
    result.status === "SUCCEEDED" || result.status === "SCORER_FAILED" ? "not stored" : `no valid output (${statusOf(result)})`;

  // --- one sample ------------------------------------------------------------------------------------------------

  const grid = (caption, columns, rows) =>
    node("div", { class: "wide" }, node("table", {},
      node("caption", { class: "hidden" }, caption),
      node("thead", {}, node("tr", {}, columns.map((title, place) => node("th", { scope: "col", class: place ? null : "names" }, title)))),
      node("tbody", {}, rows)));

  const line = (title, cells) => node("tr", {}, node("th", { scope: "row", class: "text" }, title), cells);

  const answers = (each) => {
    const columns = ["", ...(each.target ? ["Target"] : []), ...each.results.map((result) => variants[result.variant])];
    const span = each.results.length;
    const fields = (each.fields || []).length ? each.fields : [""];
    const rows = fields.map((path, place) => line(path || "answer", [
      each.target ? node("td", { class: "text" }, (each.target)[place] ?? "") : null,
      each.results.map((result) => fieldCell(each, result, place)),
    ]));
    const row = (title, make) => {
      const cells = each.results.map(make);
      if (cells.every((cell) => cell === null)) return null;
      return line(title, [each.target ? node("td", {}) : null, cells.map((cell) => node("td", { class: "text" }, cell === null ? "" : cell))]);
    };
    const scores = metrics.map((metric, place) => row(`score: ${metric}`, (result) => scoreText(result, metric, place)));
    const facts = [
      row("status", (result) => statusOf(result)),
      row("error", (result) => result.message || null),
      row("answered by", (result) => result.served || null),
      row("valid output", (result) => [result.outcome, result.mode].filter(Boolean).join(", ") || null),
      row("tokens in, out", (result) => (result.tokens || []).some((count) => count !== null) ? result.tokens.map((count) => count ?? "?").join(", ") : null),
      row("ms", (result) => result.ms === undefined ? null : result.ms.toLocaleString("en")),
      row("warnings", (result) => (result.warnings || []).join("\n") || null),
    ];
    return grid(`Answers of ${span} variants`, columns, [...rows, ...scores, ...facts].filter(Boolean));
  };

  const scoreText = (result, metric, place) => {
    const number = (result.scores || [])[place] ?? null;
    const detail = (result.details || {})[metric], problem = (result.problems || {})[metric];
    if (number === null) return problem ? node("span", { class: "failed" }, `scorer failed: ${problem}`) : null;
    const kind = isRight(number, place) ? "right" : "wrong";
    return [node("span", { class: kind }, rounded(number)), detail ? node("span", { class: "faint" }, ` ${detail}`) : null];
  };

  const prompts = (each) => {
    const named = (each.prompts || []).map((prompt, place) => {
      const who = each.results.filter((result) => result.prompt === place).map((result) => variants[result.variant]);
      const title = (each.prompts.length > 1 ? `Prompt of ${who.join(", ")}` : "Prompt") + (prompt.recorded === undefined ? "" : " (as recorded: its beginning, redacted, the latest message first)");
      const text = prompt.recorded === undefined ? prompt.turns.map(([role, content]) => `${role}:\n${content}`).join("\n\n") : prompt.recorded;
      return node("details", { open: each.input === undefined }, node("summary", {}, title), node("pre", { class: "text" }, text));
    });
    const input = each.input === undefined ? [] : [node("pre", { class: "text" }, each.input)];
    return [...input, ...(named.length ? named : [node("p", { class: "faint" }, "The prompt is not stored.")])];
  };

  const trace = (each) => {
    const rows = [];
    for (const result of each.results) {
      for (const call of result.calls || []) {
        const attempts = call.attempts || [{}];
        attempts.forEach((attempt, place) => rows.push(node("tr", {},
          node("td", {}, place ? "" : variants[result.variant]),
          node("td", {}, place ? "" : [call.stage, call.step && `step ${call.step}`, call.source && `from ${call.source}`].filter(Boolean).join(", ")),
          node("td", {}, attempt.model || "no request", attempt.digest ? node("span", { class: "faint" }, ` ${attempt.digest}`) : null),
          node("td", {}, [attempt.status || call.status, attempt.http && `HTTP ${attempt.http}`, attempt.finish, call.remark].filter(Boolean).join(", ")),
          node("td", {}, (attempt.tokens || []).map((count) => count ?? "?").join(", ")),
          node("td", {}, attempt.ms === undefined ? "" : attempt.ms.toLocaleString("en")),
          node("td", { class: "text" }, [attempt.code || call.code, attempt.message || call.message].filter(Boolean).join(": "), place ? null : recordedTexts(call)))));
      }
    }
    if (!rows.length) return [node("p", { class: "faint" }, "No recorded calls are at hand.")];
    return [grid("Trace", ["Variant", "Call", "Model", "Status", "Tokens in, out", "ms", "Error, prompt and answer"], rows)];
  };

  const recordedTexts = (call) => [["prompt", call.prompt], ["answer", call.answer]].filter(([, text]) => text).map(([title, text]) =>
    node("details", {}, node("summary", {}, title), node("pre", { class: "text" }, text)));

  const detail = (each) => node("div", {},
    node("h3", {}, each.input === undefined ? "Asked" : "Input"), prompts(each),
    node("h3", {}, "Answers"), answers(each),
    node("h3", {}, "Trace"), trace(each));

  // --- the table -------------------------------------------------------------------------------------------------

  const glance = (each, variant) => {
    const result = each.results.find((candidate) => candidate.variant === variant);
    if (!result) return node("td", { class: "faint" }, "–");
    const number = value(result), verdict = verdictOf(result);
    const text = (result.values || []).filter((part) => part !== null).join(" · ");
    const mark = { right: ["✓", "right"], wrong: [number > 0 && number < 1 ? "◐" : "✗", "wrong"], none: [result.status === "SUCCEEDED" ? "·" : "!", "failed"] }[verdict];
    const label = verdict === "none" ? statusOf(result) : rounded(number);
    return node("td", {}, node("span", { class: mark[1] }, node("span", { "aria-hidden": "true" }, `${mark[0]} `), verdict === "none" ? null : node("span", { class: "hidden" }, `${verdict} `), label),
      node("span", { class: "snippet faint", title: text.slice(0, 500) }, text.slice(0, 200)));
  };

  const keyOf = (each) => `${each.epoch} ${each.id}`;

  const rowsOf = (each) => {
    const isOpen = state.open.has(keyOf(each));
    const title = epochs > 1 ? `${each.id} (epoch ${each.epoch + 1})` : each.id;
    const toggle = node("button", { type: "button", class: "toggle", "aria-expanded": String(isOpen) }, title);
    const row = node("tr", {}, node("th", { scope: "row" }, toggle),
      node("td", {}, node("span", { class: "snippet" }, (each.input ?? "").slice(0, 300)), node("span", { class: "snippet faint" }, each.target ? `target: ${each.target.filter((part) => part !== null).join(" · ").slice(0, 200)}` : "")),
      variants.map((_, place) => glance(each, place)));
    let open = null;
    const show = () => {
      open = node("tr", { class: "open" }, node("td", { colspan: 2 + variants.length }, detail(each)));
      row.after(open);
    };
    toggle.addEventListener("click", () => {
      const opens = open === null;
      toggle.setAttribute("aria-expanded", String(opens));
      if (opens) { state.open.add(keyOf(each)); show(); }
      else { state.open.delete(keyOf(each)); open.remove(); open = null; }
    });
    return [row, isOpen ? show : null];
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(state.rows.length / PAGE_ROWS));
    state.page = Math.min(Math.max(0, state.page), pages - 1);
    const begin = state.page * PAGE_ROWS, shown = state.rows.slice(begin, begin + PAGE_ROWS);
    const body = at("cases").tBodies[0], made = shown.map(rowsOf);
    body.replaceChildren(...made.map(([row]) => row));
    for (const [, show] of made) if (show) show();
    at("cases").hidden = !shown.length;
    at("pages").hidden = pages < 2;
    at("page").value = state.page + 1;
    at("page").max = pages;
    at("of").textContent = `of ${pages.toLocaleString("en")}`;
    at("first").disabled = at("previous").disabled = state.page === 0;
    at("next").disabled = at("last").disabled = state.page === pages - 1;
    const many = state.rows.length.toLocaleString("en"), all = cases.length.toLocaleString("en");
    const kind = epochs > 1 ? "samples and epochs" : "samples";
    at("found").textContent = shown.length ? `${many} of ${all} ${kind}; ${(begin + 1).toLocaleString("en")} to ${(begin + shown.length).toLocaleString("en")} are shown.` : `None of ${all} ${kind} fits.`;
  };

  const choices = (id, pairs) => at(id).append(...pairs.map(([key, title]) => node("option", { value: key }, title)));

  const statuses = new Set();
  for (const each of cases) for (const result of each.results) { statuses.add(result.status); statuses.add(statusOf(result)); }
  choices("variant", [["", "any"], ...variants.map((name) => [name, name])]);
  choices("status", [["", "any"], ...[...statuses].sort().map((name) => [name, name])]);
  choices("metric", metrics.length ? metrics.map((name) => [name, name]) : [["", "none"]]);
  choices("verdict", [["", "any"], ["right", lower.length ? "right (at least 1, or at most 0)" : "right (at least 1)"], ["wrong", lower.length ? "wrong" : "wrong (below 1)"], ["none", "no score"], ...(variants.length > 1 ? [["differ", "variants differ"]] : [])]);
  at("cases").tHead.replaceChildren(node("tr", {}, node("th", { scope: "col", class: "id" }, "Sample"), node("th", { scope: "col" }, "Input and target"), variants.map((name) => node("th", { scope: "col" }, name))));

  let timer;
  at("text").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, 120); });
  for (const id of ["variant", "status", "metric", "verdict"]) at(id).addEventListener("change", search);
  at("filter").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  at("filter").addEventListener("reset", () => setTimeout(search));
  const turn = (page) => { state.page = page; draw(); at("filter").scrollIntoView(); };
  at("first").addEventListener("click", () => turn(0));
  at("previous").addEventListener("click", () => turn(state.page - 1));
  at("next").addEventListener("click", () => turn(state.page + 1));
  at("last").addEventListener("click", () => turn(Infinity));
  at("page").addEventListener("change", () => turn(Number(at("page").value || 1) - 1));
  at("filter").hidden = false;
  search();
})();
