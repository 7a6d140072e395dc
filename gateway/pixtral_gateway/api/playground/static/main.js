// The page: what is asked goes to the gateway's public API, what it answers is shown.

import { Api } from "./api.js";
import { Conversation, messagesOf, placeOf } from "./conversation.js";
import { announce, find, grouped, megabytes } from "./dom.js";
import { fit, sampling, showSampling, takePictures } from "./inputs.js";
import { Tray } from "./tray.js";
import { TurnView } from "./turn.js";

const RETRY_MS = 2000;

const api = new Api();
const conversation = new Conversation();
const tray = new Tray(() => conversation.pictures);
const views = new Map();
const question = find("#question");
let model = null;
let running = null;

async function loadModel() {
  try {
    model = await api.model();
  } catch (error) {
    if (error.status === 401) return askForKey();
    showModel(error.status === 503 ? "starting…" : "not reachable");
    setTimeout(loadModel, RETRY_MS);
    return;
  }
  find("#key-form").hidden = true;
  showModel(model.id);
  tray.limits = model.pixtral;
  const { max_images: images, max_image_bytes: bytes } = model.pixtral;
  find("#limits").textContent =
    `Or drop or paste them anywhere: PNG, JPEG, WebP or GIF, up to ${megabytes(bytes)} each, ` +
    `${images} in a conversation.`;
}

function showModel(text) {
  const chip = find("#model");
  chip.textContent = text;
  chip.title = model ? `A context of ${grouped(model.max_model_len)} tokens` : "";
  chip.hidden = false;
}

function askForKey() {
  const wasWrong = api.hasKey;
  find("#key-form").hidden = false;
  find("#key").value = "";
  find("#key").focus();
  showProblem(wasWrong ? "That key is nobody's here." : "");
}

function showProblem(text) {
  find("#problem").textContent = text;
  find("#problem").hidden = !text;
}

function addView(turn) {
  const view = new TurnView(turn, conversation, () => ({
    turns: conversation.asked(turn),
    model: model?.id ?? "",
    needsKey: api.hasKey,
  }));
  views.set(turn, view);
  find("#turns").append(view.element);
  return view;
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
}

function isAtBottom() {
  return innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
}

function toBottom() {
  scrollTo(0, document.documentElement.scrollHeight);
}

async function ask() {
  await tray.settled;
  const text = question.value.trim();
  if (running || (!text && !tray.pictures.length)) return;
  const refused = tray.refused;
  if (refused) {
    showProblem(`${refused.name}: ${refused.problem}. Remove it to ask.`);
    return;
  }
  showProblem("");
  const turn = conversation.add(text, tray.take(), sampling());
  question.value = "";
  fit(question);
  running = new AbortController();
  const view = addView(turn);
  showState();
  toBottom();
  announce("Asked.");
  try {
    await receive(turn, view, running.signal);
  } catch (error) {
    // Gone where a new conversation was begun meanwhile.
    if (views.has(turn)) end(turn, error);
  } finally {
    running = null;
    showState();
  }
  conversation.save();
  if (!views.has(turn)) return;
  const follow = isAtBottom();
  view.finish();
  for (const each of views.values()) each.rescale();
  if (follow) toBottom();
  announce(turn.state === "failed" ? turn.error : `Answer: ${turn.answer || "no text"}`);
}

async function receive(turn, view, signal) {
  const { system, ...rest } = turn.sampling;
  const body = {
    model: model?.id,
    messages: messagesOf(conversation.asked(turn), system),
    ...rest,
    stream: true,
    stream_options: { include_usage: true },
  };
  for await (const chunk of api.stream(body, signal)) {
    const [choice] = chunk.choices;
    if (chunk.usage) Object.assign(turn, { usage: chunk.usage, pixtral: chunk.pixtral });
    if (!choice) continue;
    turn.answer += choice.delta.content ?? "";
    turn.finish = choice.finish_reason ?? turn.finish;
    const follow = isAtBottom();
    view.update();
    if (follow) toBottom();
  }
  turn.state = "done";
}

/** The turn that was stopped or has failed. Where no answer had begun, the question is given back. */
function end(turn, error) {
  if (error.name === "AbortError") {
    turn.state = "stopped";
    if (turn.answer) return;
  } else if (turn.answer) {
    turn.state = "failed";
    turn.error = error.message;
    return;
  }
  const place = placeOf(error.param, conversation.asked(turn), turn.sampling.system);
  const isOwn = place?.turn === turn && turn.pictures[place.picture];
  if (isOwn) {
    // The picture wears it: without the path of the field.
    turn.pictures[place.picture].problem = error.message.replace(/^\S+: /, "");
  }
  conversation.remove(turn);
  views.get(turn).element.remove();
  views.delete(turn);
  tray.put([...turn.pictures, ...tray.take()]);
  question.value ||= turn.question;
  fit(question);
  if (error.status === 401) return askForKey();
  if (error.name === "AbortError") return;
  const when = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  const name = isOwn ? turn.pictures[place.picture].name : "";
  showProblem(isOwn ? `${name} was refused. Remove it to ask.` : `${error.message}${when}`);
}

function stop() {
  running?.abort();
}

function begin() {
  stop();
  conversation.clear();
  views.clear();
  find("#turns").replaceChildren();
  showProblem("");
  showState();
  question.focus();
}

function save() {
  const text = JSON.stringify(conversation.exported(model?.id ?? null), null, 2);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

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
  loadModel();
  question.focus();
});
question.addEventListener("input", () => fit(question));
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
addEventListener("keydown", (event) => event.key === "Escape" && stop());
addEventListener("pagehide", () => conversation.save());
find("#stop").addEventListener("click", stop);
find("#new").addEventListener("click", begin);
find("#export").addEventListener("click", save);
find("#example").addEventListener("click", addExample);

conversation.load();
for (const turn of conversation.turns) addView(turn).finish();
if (conversation.turns.length) showSampling(conversation.turns.at(-1).sampling);
for (const view of views.values()) view.rescale();
showState();
loadModel();
