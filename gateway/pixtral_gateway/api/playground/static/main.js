// The page: sends questions to the gateway's public API, and shows and stores the answers.

import { Api } from "./api.js";
import { dropEmpty, goOnRequest, receive, refusedPicture, requestsOf } from "./chat.js";
import { Conversation, answerOf } from "./conversation.js";
import { announce, find, megabytes } from "./dom.js";
import { History } from "./history/database.js";
import { download, exported, imported } from "./history/files.js";
import { HistoryList } from "./history/list.js";
import { fit, takePictures } from "./inputs.js";
import { closeDrawers, isTouch, startLayout } from "./layout.js";
import { SettingsPanel } from "./settings/panel.js";
import { ofTab } from "./storage.js";
import { hideToast, offerUndo, startToast } from "./toast.js";
import { Tray } from "./tray.js";
import { TurnView } from "./turn/turn_view.js";
import { startZoom } from "./zoom.js";

const RETRY_MS = 2000;
// The conversation that this tab shows, across a reload.
const SHOWN = "conversation";

const api = new Api();
const history = new History();
const panel = new SettingsPanel();
const tray = new Tray(() => conversation.pictures);
const list = new HistoryList({ open: openKept, rename, remove });
const question = find("#question");
/** @type {Map<object, TurnView>} */
const views = new Map();
let conversation = new Conversation();
let running = null;

/* The gateway */

async function loadModels() {
  let models;
  try {
    models = await api.models();
  } catch (error) {
    if (error.status === 401) return askForKey();
    panel.offer([{ id: error.status === 503 ? "starting…" : "not reachable" }]);
    setTimeout(loadModels, RETRY_MS);
    return;
  }
  find("#key-form").hidden = true;
  panel.offer(models);
  const last = conversation.turns.at(-1);
  if (last?.answers.length) panel.show(answerOf(last, 0).settings);
  tray.limits = models[0].pixtral;
  const { max_images: images, max_image_bytes: bytes } = models[0].pixtral;
  find("#limits").textContent =
    `${isTouch() ? "" : "Or drop or paste them anywhere: "}PNG, JPEG, WebP or GIF, ` +
    `up to ${megabytes(bytes)} each, ${images} in a conversation.`;
}

function askForKey() {
  const wasWrong = api.hasKey;
  find("#key-form").hidden = false;
  find("#key").value = "";
  find("#key").focus();
  showProblem(wasWrong ? "The gateway does not know this key." : "");
}

/* The view */

function showProblem(text) {
  find("#problem").textContent = text;
  find("#problem").hidden = !text;
}

function addView(turn) {
  const view = new TurnView(turn, {
    longest: () => conversation.longest,
    request: (column) => ({
      turns: conversation.asked(turn, column),
      settings: turn.answers[column].settings,
      column,
      model: turn.answers[column].settings.model ?? "",
      needsKey: api.hasKey,
    }),
    on: {
      regenerate: () => send(turn, requestsOf(conversation, turn, settings())),
      goOn: () => goOn(turn),
      edit: (text) => edit(turn, text),
      sendResults: (results) => sendResults(turn, results),
      show: (index) => show(turn, index),
    },
  });
  views.set(turn, view);
  find("#turns").append(view.element);
  return view;
}

function drawConversation() {
  views.clear();
  find("#turns").replaceChildren();
  for (const turn of conversation.turns) addView(turn);
  showState();
}

function showState() {
  const isEmpty = !conversation.turns.length;
  find("#welcome").hidden = !isEmpty;
  find("#new").hidden = isEmpty;
  find("#export").hidden = isEmpty;
  const hadFocus = [find("#ask"), find("#stop")].includes(document.activeElement);
  find("#ask").hidden = Boolean(running);
  find("#stop").hidden = !running;
  if (hadFocus) (running ? find("#stop") : question).focus();
  for (const [turn, view] of views) {
    view.showActions({ isLast: turn === conversation.turns.at(-1), isBusy: Boolean(running) });
  }
}

function isAtBottom() {
  return innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
}

function toBottom() {
  scrollTo(0, document.documentElement.scrollHeight);
}

/** Draws, and stays at the page's end where it was there. */
function following(draw) {
  const follow = isAtBottom();
  draw();
  if (follow) toBottom();
}

/* Asking */

async function ask() {
  await tray.settled;
  const text = question.value.trim();
  if (running || (!text && !tray.pictures.length)) return;
  const { refused } = tray;
  if (refused) return showProblem(`${refused.name}: ${refused.problem}. Remove it to ask.`);
  const asked = settings();
  if (!asked) return;
  const turn = conversation.add(text, tray.take());
  question.value = "";
  fit(question);
  addView(turn);
  await send(turn, requestsOf(conversation, turn, asked));
}

/** The settings to ask with, or null where a field of them is wrong, which is shown then. */
function settings() {
  const { wrong } = panel;
  if (!wrong) return panel.values();
  if (find("#settings").hidden) find("#open-settings").click();
  wrong.focus();
  return null;
}

async function send(turn, requests) {
  if (running || !requests) return;
  hideToast();
  showProblem("");
  running = new AbortController();
  const { signal } = running;
  const view = views.get(turn);
  const kept = conversation;
  view.showAnswers();
  showState();
  toBottom();
  announce("Asked.");
  const saved = save(kept);
  const on = {
    onChange: (answer) => view.update(answer, following),
    onWait: (seconds) => view.showState(seconds),
  };
  const ends = await Promise.allSettled(requests.map((each) => receive(api, each, signal, on)));
  const error = ends.find(({ status }) => status === "rejected")?.reason;
  await saved;
  // The answer that has ended may no longer be on the page.
  const isShown = views.get(turn) === view;
  if (running?.signal === signal) running = null;
  showState();
  const hasAnswers = !error || dropEmpty(turn);
  if (!hasAnswers) kept.remove(turn);
  if (isShown) {
    if (hasAnswers) view.showAnswers();
    else giveBack(turn, requests, error);
    following(() => view.finish());
    showState();
    if (error && hasAnswers && error.status) showProblem(problemOf(error));
    for (const each of views.values()) each.rescale();
    const failed = hasAnswers ? turn.answers.find(({ state }) => state === "failed") : null;
    if (hasAnswers) announce(failed ? failed.error : `Answer: ${view.text || "no text"}`);
  }
  await save(kept);
}

/** No answer had begun: puts the question back into its field. */
function giveBack(turn, requests, error) {
  const refused = refusedPicture(error, { asked: () => askedWith(turn) }, turn, requests[0].answers[0].settings);
  // The picture shows the reason, without the path of the field.
  if (refused) refused.problem = error.message.replace(/^\S+: /, "");
  views.get(turn).element.remove();
  views.delete(turn);
  tray.put([...turn.pictures, ...tray.take()]);
  question.value ||= turn.question;
  fit(question);
  if (error.status === 401) return askForKey();
  if (error.name === "AbortError") return;
  showProblem(refused ? `${refused.name} was refused. Remove it to ask.` : problemOf(error));
}

/** The turns of a turn's request, although the turn is no longer in the conversation. */
function askedWith(turn) {
  return new Conversation({ turns: [...conversation.turns, turn] }).asked(turn);
}

function problemOf({ message, retryAfter }) {
  return retryAfter ? `${message} Try again in ${retryAfter} s.` : message;
}

function stop() {
  running?.abort();
}

async function goOn(turn) {
  const answers = turn.isComparison ? turn.answers.keys() : [turn.shown];
  await send(turn, [...answers].map((column) => goOnRequest(conversation, turn, column)));
}

/** Asks a question anew. The turns after it are removed; undo brings them back. */
async function edit(turn, text) {
  const asked = settings();
  if (!asked || running) return;
  const before = [...conversation.turns];
  const { title } = conversation;
  conversation.cutAfter(turn);
  conversation.remove(turn);
  const next = conversation.add(text, turn.pictures);
  drawConversation();
  const undo = () => {
    stop();
    conversation.turns = before;
    conversation.title = title;
    drawConversation();
    save(conversation);
  };
  const sent = send(next, requestsOf(conversation, next, asked));
  const later = before.length - before.indexOf(turn) - 1;
  offerUndo(later ? `Asked again; ${later} later ${later === 1 ? "turn" : "turns"} removed.` : "Asked again.", undo);
  await sent;
}

async function sendResults(turn, results) {
  const asked = settings();
  if (!asked || running) return;
  const next = conversation.add("", [], results);
  addView(next);
  await send(next, requestsOf(conversation, next, asked));
}

function show(turn, index) {
  turn.shown = index;
  views.get(turn).showAnswers();
  showState();
  save(conversation);
}

/* The conversations */

async function save(kept) {
  try {
    if (kept.turns.length) {
      kept.updated = Date.now();
      await history.write(kept);
      if (kept === conversation) ofTab.set(SHOWN, kept.id);
    } else {
      await history.remove(kept.id);
    }
  } catch {
    showProblem("This browser has no more room for conversations. Export and delete some.");
  }
  await showHistory();
}

async function showHistory() {
  list.show(await history.list(), conversation.id);
}

function take(next) {
  stop();
  conversation = next;
  ofTab.set(SHOWN, next.turns.length ? next.id : null);
  showProblem("");
  drawConversation();
  showHistory();
}

function begin() {
  hideToast();
  take(new Conversation());
  closeDrawers();
  question.focus();
}

async function openKept({ id }) {
  const kept = await history.read(id);
  if (!kept) return showHistory();
  take(settled(kept));
  if (kept.turns.length) panel.show(answerOf(kept.turns.at(-1), 0).settings);
  closeDrawers();
  toBottom();
  question.focus();
}

/** Without answers that were on their way when the page was left. */
function settled(kept) {
  for (const turn of kept.turns) {
    for (const answer of turn.answers) {
      if (answer.state === "answering") answer.state = "stopped";
    }
    dropEmpty(turn);
  }
  kept.turns = kept.turns.filter((turn) => turn.answers.length);
  return kept;
}

async function rename({ id }, title) {
  const kept = id === conversation.id ? conversation : await history.read(id);
  kept.title = title;
  await history.write(kept);
  await showHistory();
}

async function remove({ id, title }) {
  const kept = id === conversation.id ? conversation : await history.read(id);
  if (kept === conversation) take(new Conversation());
  await history.remove(id);
  await showHistory();
  offerUndo(`“${title}” deleted.`, async () => {
    await history.write(kept);
    await showHistory();
  });
}

async function exportAll() {
  const summaries = await history.list();
  const all = await Promise.all(summaries.map(({ id }) => history.read(id)));
  download("conversations.json", exported(all));
}

async function importFile(file) {
  try {
    const found = imported(await file.text());
    await history.add(found);
    announce(`${found.length} conversations added.`);
  } catch (error) {
    showProblem(error.message);
  }
  await showHistory();
}

/* Start */

async function addExample() {
  const response = await fetch("page/example.png");
  await tray.add([new File([await response.blob()], "example.png", { type: "image/png" })]);
  question.value ||= "What word is printed?";
  fit(question);
  question.focus();
}

takePictures(async (files) => {
  await tray.add(files);
  showProblem("");
  question.focus();
});
find("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
find("#key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey(find("#key").value.trim());
  showProblem("");
  loadModels();
  question.focus();
});
question.addEventListener("input", () => fit(question));
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !find("#zoom").open && !closeDrawers()) stop();
});
addEventListener("pagehide", () => running && save(conversation));
find("#stop").addEventListener("click", stop);
find("#new").addEventListener("click", begin);
find("#export").addEventListener("click", () => download("conversation.json", exported([conversation])));
find("#export-all").addEventListener("click", exportAll);
find("#import").addEventListener("click", () => find("#import-file").click());
find("#import-file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  target.value = "";
  importFile(file);
});
find("#example").addEventListener("click", addExample);
startLayout();
startToast();
startZoom();

await history.open();
const last = ofTab.get(SHOWN);
const kept = last && (await history.read(last));
if (kept) conversation = settled(kept);
drawConversation();
showHistory();
loadModels();
