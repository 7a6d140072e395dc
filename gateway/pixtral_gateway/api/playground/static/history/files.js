// Exports and imports conversations as a file of JSON. An import reads only known fields.

import { Conversation, messagesOf } from "../conversation.js";

const FORMAT = "pixtral-serve conversations";
const VERSION = 1;
const PICTURE = /^data:image\/[\w.+-]+;base64,[A-Za-z0-9+/=]*$/;
const STATES = ["done", "stopped", "failed"];

/** @param {Conversation[]} conversations */
export function exported(conversations) {
  return {
    format: FORMAT,
    version: VERSION,
    exported: new Date().toISOString(),
    conversations: conversations.map(({ title, created, updated, turns }) => ({
      title,
      created,
      updated,
      // For other programs: as OpenAI has them, without the last answer.
      messages: turns.length ? messagesOf(turns) : [],
      turns,
    })),
  };
}

export function download(name, value) {
  const link = document.createElement("a");
  const text = JSON.stringify(value, null, 1);
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

/**
 * @param {string} text of a file
 * @returns {Conversation[]}
 * @throws {Error} with a sentence for the user
 */
export function imported(text) {
  let told;
  try {
    told = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON. Choose one that Export has written.");
  }
  if (told?.format !== FORMAT) throw new Error("The file is not an export of this page.");
  if (told.version !== VERSION) {
    throw new Error(`The file is of version ${told.version}, and this page reads version ${VERSION}.`);
  }
  try {
    return list(told.conversations).map(conversation);
  } catch (error) {
    throw new Error(`The file is damaged: ${error.message}.`);
  }
}

function conversation({ title, created, updated, turns }) {
  return new Conversation({
    title: string(title),
    created: number(created),
    updated: number(updated),
    turns: list(turns).map(turn),
  });
}

function turn({ question, pictures, results, answers, shown, isComparison }) {
  const read = list(answers).map(answer);
  return {
    question: string(question),
    pictures: list(pictures).map(picture),
    results: list(results).map(({ id, content }) => ({ id: string(id), content: string(content) })),
    answers: read,
    shown: Math.max(0, Math.min(read.length - 1, number(shown))),
    isComparison: isComparison === true && read.length === 2,
  };
}

function picture({ name, size, type, url }) {
  if (!PICTURE.test(string(url))) throw new Error("a picture is not in the file");
  return { name: string(name), size: number(size), type: string(type), url };
}

function answer({ text, reasoning, toolCalls, state, finish, usage, pixtral, error, settings }) {
  return {
    text: string(text),
    reasoning: string(reasoning),
    toolCalls: list(toolCalls).map((call) => ({
      id: string(call.id),
      name: string(call.name),
      arguments: string(call.arguments),
    })),
    state: STATES.includes(state) ? state : "stopped",
    finish: finish === null ? null : string(finish),
    ...measured(usage, pixtral),
    error: string(error),
    settings: settings && typeof settings === "object" ? settings : {},
  };
}

/** The numbers of an answer, or none where one is missing. */
function measured(usage, pixtral) {
  try {
    const { prompt_tokens, completion_tokens, prompt_tokens_details: details } = usage;
    const { timings, images } = pixtral;
    [
      ...[prompt_tokens, completion_tokens, details.image_tokens, details.cached_tokens],
      ...[timings.queue_seconds, timings.encode_seconds],
      ...[timings.time_to_first_token_seconds, timings.total_seconds],
      ...images.flatMap(({ width, height, tokens, encode_seconds }) => [width, height, tokens, encode_seconds]),
    ].forEach(number);
    return { usage, pixtral };
  } catch {
    return { usage: null, pixtral: null };
  }
}

function string(value) {
  if (typeof value !== "string") throw new Error("a text is missing");
  return value;
}

function number(value) {
  if (!Number.isFinite(value)) throw new Error("a number is missing");
  return value;
}

function list(value) {
  if (!Array.isArray(value)) throw new Error("a list is missing");
  return value;
}
