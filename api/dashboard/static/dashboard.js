// The dashboard's behaviour. All data comes from /v1 with the visitor's key and is shown as text, never as markup.
"use strict";

const KEY = "glue.key";
const ENDED = ["succeeded", "failed", "cancelled"];
const COLOURS = ["#3b82c4", "#d97706", "#2f9e6e", "#a855c7", "#c2410c", "#0e7490"];
const LIST_SECONDS = 3, RETRY_SECONDS = 2, EVENTS_SHOWN = 500;
const byId = (id) => document.getElementById(id);

// ---- asking the API ----

class Refused extends Error {
  constructor(status, problem) {
    const lines = (problem.errors || []).map((error) => `${error.pointer || "/"}: ${error.detail} (${error.fix})`);
    super([problem.detail || `The service answered ${status}.`, ...lines].join("\n"));
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY)}`, ...options.headers };
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) throw new Refused(response.status, await response.json().catch(() => ({})));
  return response;
}

const askJson = async (path, options) => (await ask(path, options)).json();

async function follow(path, last, onEvent) {
  // Server-sent events by fetch, since EventSource cannot send a key. Gives the last event's number.
  const response = await ask(path, { headers: { Accept: "text/event-stream", "Last-Event-ID": String(last) } });
  if (response.status === 204) return { last, ended: true };
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return { last, ended: false };
    const frames = (text + value).split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      const data = frame.match(/^id: \d+\nevent: .+\ndata: (.+)$/m);
      if (!data) continue;
      const event = JSON.parse(data[1]);
      last = event.seq;
      onEvent(event);
    }
  }
}

// ---- putting things on the page ----

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const chip = (status) => make("span", { className: `chip ${status}`, textContent: status });

function bar(share) {
  const fill = make("span", { className: "fill" });
  fill.style.width = `${100 * share}%`;
  return make("span", { className: "bar" }, fill);
}

function duration(seconds) {
  if (seconds === null) return "";
  const [days, hours, minutes] = [seconds / 86400, (seconds / 3600) % 24, (seconds / 60) % 60].map(Math.floor);
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(seconds)} s`;
}

const moment = (text) => new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
const points = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

function tell(error) {
  const wrongKey = error?.status === 401;
  byId("notice").hidden = !error;
  byId("notice").textContent = wrongKey ? "This key is not valid." : error?.message || "";
  if (wrongKey) askForKey();
}

async function told(work) {
  try {
    await work();
    tell(null);
  } catch (error) {
    tell(error instanceof TypeError ? new Error("The service does not answer; trying again.") : error);
    return error;
  }
}

// ---- the key ----

function askForKey() {
  sessionStorage.removeItem(KEY);
  byId("content").hidden = byId("forget-key").hidden = true;
  byId("key-form").hidden = false;
  byId("key").focus();
}

function start() {
  byId("key-form").addEventListener("submit", (submitted) => {
    submitted.preventDefault();
    sessionStorage.setItem(KEY, byId("key").value.trim());
    location.reload();
  });
  byId("forget-key").addEventListener("click", () => { askForKey(); location.reload(); });
  if (!sessionStorage.getItem(KEY)) return askForKey();
  byId("content").hidden = byId("forget-key").hidden = false;
  document.body.dataset.page === "jobs" ? jobsPage() : jobPage(document.body.dataset.job);
  keepShowingWorkers();
}

async function keepShowingWorkers() {
  for (; sessionStorage.getItem(KEY); await wait(5 * LIST_SECONDS)) {
    const workers = (await askJson("/v1/workers").catch(() => null))?.data;
    if (!workers) continue;
    const busy = workers.filter((worker) => worker.busy).length;
    byId("workers").textContent = `${workers.length} worker${workers.length === 1 ? "" : "s"}, ${busy} busy`;
  }
}

// ---- the list of jobs ----

async function jobsPage() {
  let pages = 1;
  const show = () => told(async () => {
    const status = byId("status-filter").value;
    const jobs = [];
    let after = null;
    for (let page = 0; page < pages; page += 1) {
      const query = new URLSearchParams({ limit: 25, ...(status && { status }), ...(after && { after }) });
      const found = await askJson(`/v1/jobs?${query}`);
      jobs.push(...found.data);
      after = found.next_cursor;
      if (!found.has_more) break;
    }
    byId("jobs").replaceChildren(...jobs.map(jobRow));
    byId("no-jobs").hidden = jobs.length > 0;
    byId("older").hidden = after === null;
  });
  byId("status-filter").addEventListener("change", show);
  byId("older").addEventListener("click", () => { pages += 1; show(); });
  for (; sessionStorage.getItem(KEY); await wait(LIST_SECONDS)) if (!document.hidden) await show();
}

function jobRow(job) {
  const link = make("a", { href: `/jobs/${job.id}`, textContent: job.name || job.spec.zoo.name });
  const progress = make("div", { className: `progress ${job.status}` }, bar(job.progress.percent / 100));
  progress.append(make("span", { className: "muted", textContent: `${job.progress.percent} %` }));
  return make("tr", {},
    make("td", {}, link, make("span", { className: "id", textContent: job.id })),
    make("td", {}, chip(job.status)),
    make("td", { className: "wide", title: job.status_message || "" }, progress),
    make("td", { className: "number", textContent: gainOf(job.result) }),
    make("td", { textContent: moment(job.created_at) }),
    make("td", { className: "number", textContent: duration(job.durations.running_seconds) }));
}

// ---- one job ----

async function jobPage(id) {
  const events = [];
  let job = null, planned = null, resultShown = false;

  const refresh = async () => {
    job = await askJson(`/v1/jobs/${id}`);
    showJob(job);
    showTrace(events);
    showEvents(events);
    if (job.result && !resultShown) {
      resultShown = true;
      showResult(job, await askJson(`/v1/jobs/${id}/report`));
      await showPlots(job.result.artifact_id);
    }
  };
  const refreshSoon = () => {
    // Many events arrive together, and are shown together.
    planned ??= setTimeout(() => { planned = null; told(refresh); }, 250);
  };
  const change = (verb) => told(async () => {
    await askJson(`/v1/jobs/${id}/${verb}`, { method: "POST" });
    await refresh();
  });
  for (const verb of ["pause", "resume"]) byId(verb).addEventListener("click", () => change(verb));
  byId("cancel").addEventListener("click", () => {
    if (confirm("Cancel this job? What it has finished is kept, but it does not go on.")) {
      change("cancel");
    }
  });

  let last = 0;
  for (let ended = false; !ended && sessionStorage.getItem(KEY);) {
    const failure = await told(async () => {
      await refresh();
      const seen = (event) => { events.push(event); last = event.seq; refreshSoon(); };
      ({ ended } = await follow(`/v1/jobs/${id}/events`, last, seen));
    });
    if (failure?.status === 404) {
      byId("content").hidden = true;
      return;
    }
    if (failure) await wait(RETRY_SECONDS);
  }
  await told(refresh);
}

function showJob(job) {
  byId("job-name").textContent = job.name || job.spec.zoo.name;
  byId("job-status").replaceChildren(chip(job.status));
  byId("job-message").textContent = ENDED.includes(job.status) ? "" : job.status_message || "";
  byId("pause").hidden = !["queued", "running"].includes(job.status);
  byId("resume").hidden = job.status !== "paused";
  byId("cancel").hidden = !["queued", "running", "paused"].includes(job.status);
  const labels = Object.entries(job.labels).map(([key, value]) => `${key}: ${value}`);
  const ran = job.durations.running_seconds;
  byId("job-facts").textContent = [
    job.id, `zoo ${job.spec.zoo.name}`, `${job.spec.zoo.members.length} members`, `seed ${job.seed}`,
    `submitted ${moment(job.created_at)}`, ran === null ? "" : `ran ${duration(ran)}`, ...labels,
  ].filter(Boolean).join(" · ");
  byId("job-error").hidden = !job.error;
  if (job.error) {
    const problems = job.error.problems.map((problem) => `${problem.pointer} ${problem.detail} (${problem.fix})`);
    byId("job-error").textContent = [`${job.error.reason}: ${job.error.detail}`, ...problems].join("\n");
  }
  if (!byId("spec").textContent) byId("spec").textContent = JSON.stringify(job.spec, null, 2);
  showChain(job.chain);
  showStages(job.stages);
}

function showChain(names) {
  const list = document.getElementById("stages");
  if (list.children.length) return;  // a job's chain never changes
  for (const name of names) {
    const line = document.getElementById("stage-line").content.firstElementChild.cloneNode(true);
    line.dataset.stage = name;
    line.querySelector(".stage-name").textContent = name;
    list.append(line);
  }
}

function showStages(stages) {
  for (const line of document.querySelectorAll("#stages > li[data-stage]")) {
    const runs = stages.filter((stage) => stage.name === line.dataset.stage);
    while (line.nextElementSibling?.classList.contains("family")) line.nextElementSibling.remove();
    if (!runs.length) continue;  // stages of families, which are not known yet
    showStageLine(line, runs);
    const families = runs.filter((run) => run.family !== null);
    if (families.length > 1) line.after(...families.map((run) => {
      const units = make("span", { className: "stage-units muted" });
      const name = make("span", { className: "stage-name", textContent: run.family });
      const added = make("li", { className: "family" }, name, bar(0), units);
      showStageLine(added, [run]);
      return added;
    }));
  }
}

function showStageLine(line, runs) {
  const finished = runs.reduce((sum, run) => sum + run.units.finished, 0);
  const total = runs.reduce((sum, run) => sum + run.units.total, 0);
  const done = runs.every((run) => run.status === "succeeded");
  const state = ["failed", "running", "cancelled", "pending"].find((each) => runs.some((run) => run.status === each));
  line.classList.remove("pending", "running", "succeeded", "failed", "cancelled");
  line.classList.add(done ? "succeeded" : state);
  line.querySelector(".fill").style.width = `${done ? 100 : total ? (100 * finished) / total : 0}%`;
  const begun = runs.map((run) => run.started_at).filter(Boolean).sort()[0];
  const until = done ? runs.map((run) => run.finished_at).sort().at(-1) : null;
  const took = begun && until ? duration((new Date(until) - new Date(begun)) / 1000) : "";
  const counts = total ? `${finished} of ${total} unit${total === 1 ? "" : "s"}` : "";
  line.querySelector(".stage-units").textContent =
    [counts, took, done || state === "running" ? "" : state].filter(Boolean).join(" · ");
}

function showEvents(events) {
  byId("event-count").textContent = `${events.length}`;
  byId("events").replaceChildren(...events.slice(-EVENTS_SHOWN).reverse().map((event) => {
    const name = event.data.summary?.name || event.data.error?.detail || event.data.kind || "";
    const mean = event.data.summary?.score?.mean;
    const score = mean === undefined ? "" : `${(100 * mean).toFixed(1)} %`;
    return make("li", {},
      make("span", { className: "seq", textContent: event.seq }),
      make("span", { className: `type ${event.type.split(".")[1]}`, textContent: event.type }),
      make("span", { textContent: [event.stage, event.family, name, score].filter(Boolean).join(" · ") }));
  }));
}

// ---- the search ----

function trialsOf(events) {
  const ofSearch = events.filter((event) => event.stage === "search" && event.data.kind === "score.candidate");
  const trials = ofSearch.filter((event) => event.type === "unit.succeeded" || event.type === "unit.failed");
  return trials.map((event) => ({
    family: event.family || "", generation: event.data.generation, position: event.data.position,
    name: event.data.summary?.name || "failed", mean: event.data.summary?.score?.mean ?? null,
  })).sort((a, b) => a.generation - b.generation || a.position - b.position);
}

function singlesOf(events) {
  const scored = events.filter((event) => event.stage === "baselines" && event.type === "unit.succeeded");
  return scored.map((event) => event.data.summary?.score?.mean).filter((mean) => mean !== undefined);
}

function showTrace(events) {
  const trials = trialsOf(events), means = trials.map((trial) => trial.mean).filter((mean) => mean !== null);
  byId("search").hidden = !means.length;
  if (!means.length) return;
  const single = Math.max(...singlesOf(events));
  const shown = Number.isFinite(single) ? [...means, single] : means;
  const families = [...new Set(trials.map((trial) => trial.family))].sort();
  const longest = Math.max(...families.map((family) => trials.filter((trial) => trial.family === family).length));
  byId("trace").replaceChildren(traceChart(trials, families, longest, single, Math.min(...shown), Math.max(...shown)));
}

function traceChart(trials, families, longest, single, lowest, highest) {
  const width = 900, height = 270, left = 46, right = 12, top = 26, bottom = 26;
  const margin = Math.max(0.08 * (highest - lowest), 0.004);
  const x = (number) => left + ((width - left - right) * number) / Math.max(longest + 1, 2);
  const y = (mean) => top + ((height - top - bottom) * (highest + margin - mean)) / (highest - lowest + 2 * margin);
  const chart = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Score of every candidate" });
  for (let line = 0; line <= 4; line += 1) {
    const mean = lowest - margin + ((highest - lowest + 2 * margin) * line) / 4;
    chart.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(mean), y2: y(mean) }));
    chart.append(draw("text", { x: left - 8, y: y(mean) + 4, "text-anchor": "end" }, (100 * mean).toFixed(1)));
  }
  chart.append(draw("text", { x: width - right, y: height - 6, "text-anchor": "end" }, "candidate"));
  if (Number.isFinite(single)) {
    chart.append(draw("line", { class: "single", x1: left, x2: width - right, y1: y(single), y2: y(single) }));
    chart.append(draw("text", { x: width - right, y: y(single) - 5, "text-anchor": "end" }, "best single model"));
  }
  families.forEach((family, index) => {
    const colour = COLOURS[index % COLOURS.length];
    chart.append(draw("circle", { cx: left + 5 + 110 * index, cy: 10, r: 4, fill: colour }));
    chart.append(draw("text", { x: left + 14 + 110 * index, y: 14 }, family || "search"));
    traceFamily(chart, trials.filter((trial) => trial.family === family), colour, x, y, width - right);
  });
  return chart;
}

function traceFamily(chart, trials, colour, x, y, end) {
  let best = -Infinity, path = "";
  trials.forEach((trial, index) => {
    if (trial.mean === null) return;
    if (trial.mean > best) {
      path += path ? `H${x(index + 1)}V${y(trial.mean)}` : `M${x(index + 1)} ${y(trial.mean)}`;
      best = trial.mean;
    }
    const dot = draw("circle", { cx: x(index + 1), cy: y(trial.mean), r: 4, fill: colour, "fill-opacity": 0.6 });
    dot.append(draw("title", {}, `${trial.name}: ${(100 * trial.mean).toFixed(2)} %`));
    chart.append(dot);
  });
  if (path) chart.append(draw("path", { class: "best", d: `${path}H${Math.min(x(trials.length + 0.5), end)}`, stroke: colour }));
}

// ---- the result ----

// What was gained, of a job that has something to compare with.
function gainOf(result) {
  return result && result.gain_over_best_single !== null ? points(result.gain_over_best_single) : "";
}

function showGain(report) {
  const gain = report.gain_over_best_single, stderr = report.gain_over_best_single_stderr;
  byId("gain").hidden = gain === null;
  if (gain === null) return;
  const recommended = report.recommended === null ? "" : ` Recommended: ${report.recommended}.`;
  byId("gain").classList.toggle("unsure", gain <= 2 * stderr);
  byId("gain").replaceChildren(
    make("strong", { textContent: points(gain) }),
    `± ${stderr.toFixed(2)} points over the best single model, ${report.best_single}.${recommended}`);
}

function showResult(job, report) {
  showGain(report);
  // A build without a report suite has no rows.
  const tasks = report.models.slice(0, 1).flatMap((row) => row.report.tasks.map((task) => task.task));
  const heads = [...tasks, "mean"].map((name) => make("th", { className: "number", textContent: name }));
  byId("report-head").replaceChildren(make("tr", {}, make("th", { textContent: "model" }), ...heads));
  byId("report-rows").replaceChildren(...report.models.map((row) => reportRow(row, report)));
  byId("warnings").replaceChildren(...report.warnings.map((text) => make("li", { textContent: text })));
  byId("pull").textContent = `glue pull ${job.id} DIR`;
  byId("result").hidden = false;
}

function reportRow(row, report) {
  const tags = [[report.best_single, "best single"], [report.artifact, "the artifact"], [report.recommended, "recommended"]];
  const mine = tags.filter(([name]) => name === row.name).map(([, text]) => make("span", { className: "tag", textContent: text }));
  const cells = [...row.report.tasks, row.report].map((score) => make("td", { className: "number" },
    (100 * score.mean).toFixed(1), " ", make("small", { textContent: `± ${(100 * score.stderr).toFixed(1)}` })));
  const className = row.name === report.artifact ? "artifact" : "";
  return make("tr", { className }, make("td", {}, row.name, ...mine), ...cells);
}

async function showPlots(artifactId) {
  const artifact = await askJson(`/v1/artifacts/${artifactId}`);
  const paths = artifact.manifest.files.map((file) => file.path).filter((path) => /^plots\/[\w-]+\.png$/.test(path));
  const images = await Promise.all(paths.map(async (path) => {
    const picture = await (await ask(`/v1/artifacts/${artifactId}/files/${path}`)).blob();
    return make("img", { src: URL.createObjectURL(picture), alt: path.slice("plots/".length, -".png".length) });
  }));
  byId("plot-images").replaceChildren(...images);
  byId("plots").hidden = !images.length;
}

start();
