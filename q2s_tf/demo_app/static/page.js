// Requests /api/search and /api/channels, and shows the results. Titles are written by strangers: all text is set by textContent.

const find = (selector, within = document) => within.querySelector(selector);
const form = find("#search");
const more = find("#more");
const sides = { hybrid: "Hybrid search", bm25: "BM25" };
const percent = new Intl.NumberFormat("en", { style: "percent" });
const score = new Intl.NumberFormat("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const milliseconds = new Intl.NumberFormat("en", { maximumSignificantDigits: 2, style: "unit", unit: "millisecond" });
const languages = new Intl.DisplayNames("en", { type: "language" });
const regions = new Intl.DisplayNames("en", { type: "region" });

/** The current search: {query, country, page, full, busy, focus, controller}, or null on the start page. */
let shown = null;

function nameOf(names, code) {
  try {
    return names.of(code);
  } catch {
    return code; // not a standard code: shown unchanged
  }
}

/** The lang attribute: the language of the document if it is a valid tag, else "", which means unknown. */
function languageTag(language) {
  try {
    return language ? Intl.getCanonicalLocales(language)[0] : "";
  } catch {
    return "";
  }
}

function instance(template) {
  return find(`#${template}-template`).content.cloneNode(true);
}

/** Requests JSON for the query of a search. */
async function request({ query, country, controller }, path, parameters) {
  const all = new URLSearchParams({ query, country, ...parameters });
  let response;
  try {
    response = await fetch(`${path}?${all}`, { signal: controller.signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the demo page does not answer; is q2s demo-app still running?");
  }
  const answer = await response.json().catch(() => ({ error: `the demo page failed with status ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** A bar with its name and value. `start` and `length` are numbers on the scale from 0 to the --full of page.css. */
function bar(name, value, length, start = 0) {
  const item = instance("bar");
  const fill = find(".fill", item);
  find(".name", item).textContent = find(".name", item).title = name;
  find(".value", item).textContent = value;
  fill.style.setProperty("--length", Math.abs(length));
  fill.style.setProperty("--start", start);
  fill.classList.toggle("negative", length < 0);
  return item;
}

function channelBar({ name, weight }) {
  return bar(name.replaceAll("_", " "), 0 < weight && weight < 0.005 ? "<1%" : percent.format(weight), weight);
}

/** The parts of a hybrid score, end to end: the bar of the words begins where that of the cosine ends. */
function scoreBars({ score: sum, embedding_score: cosine }) {
  const words = Math.max(sum - cosine, 0); // not below 0 by rounding
  const start = Math.max(cosine, 0);
  return [bar("embeddings", score.format(cosine), cosine), bar("words", score.format(words), words, start)];
}

/** A listener of the first opening of a list of channels, which requests and shows them. */
function loadChannels(search, { document_id: id }) {
  return async ({ target }) => {
    const list = find("ul", target);
    list.setAttribute("aria-busy", "true");
    try {
      const { channels } = await request(search, "/api/channels", { document_id: id });
      list.replaceChildren(...channels.map(({ name, part }) => bar(name.replaceAll("_", " "), score.format(part), part)));
    } catch (error) {
      list.replaceChildren(Object.assign(document.createElement("li"), { className: "error", textContent: error.message }));
    }
    list.removeAttribute("aria-busy");
  };
}

function card(result) {
  const item = instance("card");
  const lang = languageTag(result.language);
  find(".card", item).dataset.id = result.document_id;
  find(".rank", item).textContent = result.rank;
  find(".title", item).textContent = result.title ?? ("title" in result ? "(no title)" : "(not in the documents table)");
  find(".description", item).textContent = result.description ?? "";
  for (const text of [find(".title", item), find(".description", item)]) text.lang = lang;
  find(".score", item).textContent = score.format(result.score);
  const about = [result.document_id];
  if (result.country) about.unshift(nameOf(regions, result.country));
  if (result.language) about.unshift(nameOf(languages, result.language));
  find(".about", item).textContent = `· ${about.join(" · ")}`;
  const channels = find(".channels", item); // if the page has a run
  if ("embedding_score" in result) find(".parts", item).append(...scoreBars(result));
  else find(".bars", item).remove();
  if (channels && "title" in result) channels.addEventListener("toggle", loadChannels(shown, result), { once: true });
  else channels?.remove();
  if (result.picture) {
    const image = find("img", item);
    image.addEventListener("error", () => image.remove());
    image.src = result.picture;
    image.hidden = false;
  }
  return item;
}

/** Adds a page to one side and returns the number of new results: after a change of version, some may be repeated. */
function addPage(side, number, { results, milliseconds: took, effort }) {
  const before = new Set([...document.querySelectorAll(`#${side} .card`)].map((item) => item.dataset.id));
  const fresh = results.filter((result) => !before.has(result.document_id));
  const page = instance("page");
  const facts = [`Page ${number}`, milliseconds.format(took)];
  if (typeof effort === "number") facts.splice(1, 0, `effort ${effort}`);
  if (fresh.length === 0) facts.push(number === 1 ? "no results" : "no more results");
  find(".note", page).textContent = facts.join(" · ");
  find("ol", page).append(...fresh.map(card));
  if (fresh.length > 0 || number === 1) find(`#${side} .pages`).append(page);
  return fresh.length;
}

/** Shows for each result its rank on the other side. */
function markShared() {
  for (const [side, other] of [["hybrid", "bm25"], ["bm25", "hybrid"]]) {
    const ranks = new Map(
      [...document.querySelectorAll(`#${other} .card`)].map((item) => [item.dataset.id, find(".rank", item).textContent]),
    );
    for (const item of document.querySelectorAll(`#${side} .card`)) {
      const rank = ranks.get(item.dataset.id);
      find(".shared", item).textContent = rank ? `rank ${rank} in ${sides[other]}` : "";
    }
  }
}

function showAnswer(answer) {
  find("#answers").hidden = false;
  if (answer.page === 1) find("#query-channels").replaceChildren(...answer.channels.map(channelBar));
  const ends = answer.hybrid.results.map((result) => Math.max(result.score, result.score - result.embedding_score));
  shown.full = Math.max(shown.full, ...ends);
  find("#hybrid").style.setProperty("--full", shown.full);
  const counts = Object.entries(sides).map(([side, name]) => {
    const count = addPage(side, answer.page, answer[side]);
    return `${name}: ${count} results in ${milliseconds.format(answer[side].milliseconds)}`;
  });
  markShared();
  more.hidden = !(answer.hybrid.more || answer.bm25.more);
  find("#status").textContent = `Page ${answer.page}. ${counts.join(". ")}.${more.hidden ? " No more results." : ""}`;
}

function focusOn(page) {
  const cards = document.querySelectorAll(`.pages > ol:nth-of-type(${page}) h3`);
  const headings = cards.length ? cards : [...document.querySelectorAll("h3")].reverse(); // without new results, the last one
  [...headings].find((heading) => heading.checkVisibility())?.focus();
}

/** Loads the next page of the current search; `focus` moves the focus to its first result. */
async function loadMore(focus = false) {
  const search = shown;
  search.focus ||= focus;
  if (search.busy) return;
  search.busy = true;
  find("#results").setAttribute("aria-busy", "true");
  find("#error").textContent = "";
  find("#status").textContent = "Searching…";
  try {
    const answer = await request(search, "/api/search", { page: search.page + 1 });
    if (search !== shown) return; // another search has begun
    search.page += 1;
    showAnswer(answer);
    if (search.focus) focusOn(search.page);
    search.focus = false;
    watchEnd();
  } catch (error) {
    if (search !== shown) return;
    find("#status").textContent = "";
    find("#error").textContent = error.message;
  } finally {
    search.busy = false;
    if (search === shown) find("#results").removeAttribute("aria-busy");
  }
}

const observer = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting) && shown?.page > 0) loadMore();
}, { rootMargin: "200px" });

/** Restarts the observer, which reports nothing while the button stays in view. It is not restarted after an error. */
function watchEnd() {
  observer.unobserve(more);
  observer.observe(more);
}

/** Shows the search in the address. */
function start() {
  shown?.controller.abort();
  const parameters = new URLSearchParams(location.search);
  const query = parameters.get("query") ?? "";
  const country = parameters.get("country") ?? "";
  form.elements.query.value = query;
  if (form.elements.country) chooseCountry(country);
  find("#intro").hidden = query !== "";
  find("#answers").hidden = true;
  for (const pages of document.querySelectorAll(".pages")) pages.replaceChildren();
  find("#error").textContent = find("#status").textContent = "";
  more.hidden = true;
  document.title = query ? `${query} – q2s_tf search` : "q2s_tf search";
  const controller = new AbortController();
  shown = query ? { query, country, page: 0, full: 1, busy: false, focus: false, controller } : null;
  if (shown) loadMore();
  else form.elements.query.focus();
}

function chooseCountry(country) {
  const choices = form.elements.country;
  if (![...choices.options].some((option) => option.value === country)) choices.add(new Option(country, country));
  choices.value = country;
}

for (const option of form.elements.country?.options ?? []) {
  if (option.value) option.textContent = `${nameOf(regions, option.value)} (${option.value})`;
}
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const address = `?${new URLSearchParams(new FormData(form))}`;
  if (address !== location.search) history.pushState(null, "", address);
  start();
});
more.addEventListener("click", () => loadMore(true));
addEventListener("popstate", start);
start();
