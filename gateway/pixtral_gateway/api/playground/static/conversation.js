// A conversation: its turns, each a question with its answers, and the same as OpenAI's messages.

/**
 * @typedef {{name: string, size: number, type: string, url: string, problem?: string}} Picture
 *   `url` is a data URL
 * @typedef {{id: string, name: string, arguments: string}} ToolCall
 * @typedef {object} Answer
 * @property {string} text
 * @property {string} reasoning
 * @property {ToolCall[]} toolCalls
 * @property {"answering" | "done" | "stopped" | "failed"} state
 * @property {string | null} finish why it ended, as the gateway says
 * @property {object | null} usage
 * @property {object | null} pixtral timings, and a report on each picture
 * @property {string} error
 * @property {import("./settings/settings.js").Settings} settings what it was asked with
 * @typedef {object} Turn
 * @property {string} question
 * @property {Picture[]} pictures
 * @property {{id: string, content: string}[]} results of tool calls, in place of a question
 * @property {Answer[]} answers several where the question was asked again, or with several choices
 * @property {number} shown which of them is
 * @property {boolean} isComparison whether they stand side by side, one for each of two settings
 */

const LONGEST_TITLE = 60;

/** @returns {Answer} */
export function newAnswer(settings) {
  return {
    text: "",
    reasoning: "",
    toolCalls: [],
    state: "answering",
    finish: null,
    usage: null,
    pixtral: null,
    error: "",
    settings,
  };
}

/** The answer that a turn shows, or that of a column where two stand side by side. */
export function answerOf(turn, column = turn.shown) {
  return turn.answers[turn.isComparison ? column : turn.shown];
}

export function hasContent(answer) {
  return Boolean(answer && (answer.text || answer.toolCalls.length));
}

export class Conversation {
  constructor({ id = newId(), title = "", created = Date.now(), updated = created, turns = [] } = {}) {
    Object.assign(this, { id, title, created, updated });
    /** @type {Turn[]} */
    this.turns = turns;
  }

  /** @returns {Turn} */
  add(question, pictures, results = []) {
    const turn = { question, pictures, results, answers: [], shown: 0, isComparison: false };
    this.turns.push(turn);
    if (!this.title) this.title = titleOf(turn);
    return turn;
  }

  remove(turn) {
    this.turns = this.turns.filter((each) => each !== turn);
    if (!this.turns.length) this.title = "";
  }

  /** Removes the turns after a turn, and returns them. */
  cutAfter(turn) {
    return this.turns.splice(this.turns.indexOf(turn) + 1);
  }

  /** The turns of a request: this one behind all before it that have an answer. */
  asked(turn, column = 0) {
    const before = this.turns.slice(0, this.turns.indexOf(turn));
    return [...before.filter((each) => hasContent(answerOf(each, column))), turn];
  }

  get pictures() {
    return this.turns.reduce((sum, turn) => sum + turn.pictures.length, 0);
  }

  /** The longest answer in seconds, which is the scale of every timeline. */
  get longest() {
    const answers = this.turns.flatMap((turn) => turn.answers);
    return Math.max(0, ...answers.map((answer) => answer.pixtral?.timings.total_seconds ?? 0));
  }
}

/** Browsers have `crypto.randomUUID` with https only. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function titleOf({ question, pictures }) {
  const text = question.trim().split("\n", 1)[0] || pictures[0]?.name || "Conversation";
  return text.length > LONGEST_TITLE ? `${text.slice(0, LONGEST_TITLE).trimEnd()}…` : text;
}

/**
 * The messages as OpenAI has them.
 * @param {Turn[]} turns
 * @param {string} [system]
 * @param {{column?: number, show?: (picture: Picture) => string}} [options] `show` says how a picture is written
 */
export function messagesOf(turns, system, options = {}) {
  return entriesOf(turns, system, options).map(({ message }) => message);
}

function entriesOf(turns, system, { column = 0, show = (picture) => picture.url } = {}) {
  const entries = system ? [{ message: { role: "system", content: system } }] : [];
  turns.forEach((turn, i) => {
    entries.push(...asked(turn, show).map((message) => ({ message, turn })));
    const next = turns[i + 1];
    if (!next) return;
    entries.push(...answered(answerOf(turn, column), next).map((message) => ({ message, turn })));
  });
  return entries;
}

function asked(turn, show) {
  if (turn.results.length) {
    return turn.results.map(({ id, content }) => ({ role: "tool", tool_call_id: id, content }));
  }
  const pictures = turn.pictures.map((picture) => ({
    type: "image_url",
    image_url: { url: show(picture) },
  }));
  const text = turn.question ? [{ type: "text", text: turn.question }] : [];
  return [{ role: "user", content: pictures.length ? [...pictures, ...text] : turn.question }];
}

/** OpenAI's API needs a result of each tool call: adds the results that nobody gave. */
function answered({ text, toolCalls }, next) {
  if (!toolCalls.length) return [{ role: "assistant", content: text }];
  const calls = toolCalls.map(({ id, ...call }) => ({ id, type: "function", function: call }));
  const given = new Set(next.results.map(({ id }) => id));
  const missing = toolCalls.filter(({ id }) => !given.has(id));
  return [
    { role: "assistant", content: text, tool_calls: calls },
    ...missing.map(({ id }) => ({ role: "tool", tool_call_id: id, content: "no result" })),
  ];
}

/** The picture that an error's `param` names, with its turn. */
export function placeOf(param, turns, system, column = 0) {
  const found = /^messages\.(\d+)\.content\.(\d+)\.image_url/.exec(param ?? "");
  const turn = found && entriesOf(turns, system, { column })[Number(found[1])]?.turn;
  return turn ? { turn, picture: Number(found[2]) } : null;
}
