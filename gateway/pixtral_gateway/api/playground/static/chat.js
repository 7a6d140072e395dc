// Asking: a turn's question goes to the gateway, and its answers come as they are generated.

import { answerOf, hasContent, messagesOf, newAnswer, placeOf } from "./conversation.js";
import { untilTaken } from "./retry.js";
import { fieldsOf } from "./settings/settings.js";

/**
 * Asks a turn's question: once for each of the settings, side by side where there are two. Its new
 * answers stand in the turn at once.
 * @param {import("./conversation.js").Conversation} conversation
 * @param {import("./conversation.js").Turn} turn
 * @param {import("./settings/settings.js").Settings[]} settings
 * @returns {{body: object, answers: import("./conversation.js").Answer[]}[]} the requests to send
 */
export function requestsOf(conversation, turn, settings) {
  if (settings.length > 1) turn.answers = [];
  turn.isComparison = settings.length > 1;
  const first = turn.answers.length;
  const requests = settings.map((each, column) => {
    const count = turn.isComparison ? 1 : (each.n ?? 1);
    const answers = Array.from({ length: count }, () => newAnswer(each));
    turn.answers.push(...answers);
    const messages = messagesOf(conversation.asked(turn, column), each.system, { column });
    const fields = fieldsOf(each);
    if (turn.isComparison) delete fields.n;
    return { answers, body: { model: each.model, messages, ...fields } };
  });
  turn.shown = first;
  return requests;
}

/** The request that an answer goes on with, from where it ended. A schema would begin anew. */
export function goOnRequest(conversation, turn, column) {
  const answer = answerOf(turn, column);
  const { n, schema, ...settings } = answer.settings;
  const messages = messagesOf(conversation.asked(turn, column), settings.system, { column });
  messages.push({ role: "assistant", content: answer.text });
  const body = { model: settings.model, messages, ...fieldsOf(settings), continue_final_message: true };
  answer.state = "answering";
  answer.finish = null;
  return { answers: [answer], body };
}

/**
 * Sends one request, and again where the gateway is full; fills its answers.
 * @param {import("./api.js").Api} api
 * @param {{body: object, answers: object[]}} request
 * @param {AbortSignal} signal
 * @param {{onChange: (answer: object) => void, onWait: (seconds: number) => void}} on
 * @throws what ended it, once its answers say so; `AbortError` where it was stopped
 */
export async function receive(api, { body, answers }, signal, { onChange, onWait }) {
  const whole = { ...body, stream: true, stream_options: { include_usage: true } };
  const attempt = async () => {
    for await (const chunk of api.stream(whole, signal)) {
      for (const choice of chunk.choices) {
        take(answers[choice.index], choice);
        onChange(answers[choice.index]);
      }
      if (!chunk.usage) continue;
      for (const answer of answers) Object.assign(answer, { usage: chunk.usage, pixtral: chunk.pixtral });
    }
  };
  try {
    await untilTaken(attempt, signal, onWait);
    for (const answer of answers) answer.state = "done";
  } catch (error) {
    const state = error.name === "AbortError" ? "stopped" : "failed";
    for (const answer of answers) {
      if (answer.finish) answer.state = "done";
      else Object.assign(answer, { state, error: error.message });
    }
    throw error;
  }
}

function take(answer, { delta, finish_reason: finish }) {
  answer.text += delta.content ?? "";
  answer.reasoning += delta.reasoning ?? delta.reasoning_content ?? "";
  for (const { index, id, function: call } of delta.tool_calls ?? []) {
    answer.toolCalls[index] ??= { id: "", name: "", arguments: "" };
    const known = answer.toolCalls[index];
    known.id = id || known.id;
    known.name += call?.name ?? "";
    known.arguments += call?.arguments ?? "";
  }
  answer.finish = finish ?? answer.finish;
}

/** Removes answers that never began. Returns whether the turn has others. */
export function dropEmpty(turn) {
  turn.answers = turn.answers.filter((each) => hasContent(each) || each.reasoning || each.state === "done");
  turn.shown = Math.max(0, Math.min(turn.shown, turn.answers.length - 1));
  turn.isComparison &&= turn.answers.length === 2;
  return turn.answers.length > 0;
}

/** The own picture of a turn that an error is about, or null. */
export function refusedPicture(error, conversation, turn, settings) {
  const place = placeOf(error.param, conversation.asked(turn), settings.system);
  return place?.turn === turn ? (turn.pictures[place.picture] ?? null) : null;
}
