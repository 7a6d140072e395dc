// One answer: its text, the tools that it calls, what can be done with it, and what it took.

import { copyButton } from "../copy.js";
import { icon, make } from "../dom.js";
import { codeBlock } from "../markdown/code_block.js";
import { StreamedMarkdown } from "../markdown/streamed.js";
import { summaryOf } from "../settings/settings.js";
import { asCode } from "./as_code.js";
import { receipt, timeline } from "./timeline.js";

export class AnswerView {
  #answer;
  #context;
  #text = make("div", { className: "answer" });
  #markdown = new StreamedMarkdown(this.#text);
  #thought = make("div", { className: "thought" });
  #thinking = new StreamedMarkdown(this.#thought);
  #thoughts = make("details", { className: "thoughts", hidden: true }, make("summary", {}, "Thought"), this.#thought);
  #calls = make("div", { className: "calls" });
  #note = make("p", { className: "note", hidden: true });
  #actions = make("div", { className: "actions-row", hidden: true });
  #timing = make("div", { className: "fold", hidden: true });
  #code = make("div", { className: "fold", hidden: true });

  /**
   * @param {import("../conversation.js").Answer} answer
   * @param {object} context
   * @param {() => object} context.request what "As code" shows
   * @param {() => number} context.longest the scale of the timeline
   * @param {{regenerate: Function, goOn: Function, sendResults: Function}} context.on
   * @param {boolean} context.isNamed whether it says its settings
   */
  constructor(answer, context) {
    this.#answer = answer;
    this.#context = context;
    this.element = make(
      "section",
      { className: "answered" },
      make("h2", { className: "unseen" }, "Answer"),
      context.isNamed ? make("p", { className: "with" }, summaryOf(answer.settings)) : null,
      this.#thoughts,
      this.#text,
      this.#calls,
      this.#note,
      this.#actions,
      this.#timing,
      this.#code,
    );
    if (answer.state === "answering") this.showState();
    else this.finish();
  }

  /** As it reads, without marks. */
  get text() {
    return this.#text.innerText;
  }

  /** Shows the answer so far; `around` is of StreamedMarkdown's `update`. */
  update(around) {
    const { text, reasoning } = this.#answer;
    this.#markdown.update(text, around);
    if (!reasoning) return;
    this.#thoughts.hidden = false;
    this.#thinking.update(reasoning, around);
  }

  /** @param {number} [seconds] until the gateway is asked again, where it is full */
  showState(seconds = 0) {
    const { state, error } = this.#answer;
    const isOn = state === "answering";
    this.#text.classList.toggle("waiting", isOn);
    this.#text.setAttribute("aria-busy", String(isOn));
    const told = seconds
      ? `The gateway is full. Asking again in ${seconds} s.`
      : { answering: "", stopped: "Stopped.", failed: error, done: endOf(this.#answer) }[state];
    this.#note.textContent = told;
    this.#note.hidden = !told;
    this.#note.classList.toggle("bad", state === "failed");
    this.#actions.hidden = isOn;
  }

  /** Shows an answer that has ended. */
  finish() {
    const { text, reasoning, toolCalls } = this.#answer;
    this.#markdown.finish(text);
    this.#thoughts.hidden = !reasoning;
    if (reasoning) this.#thinking.finish(reasoning);
    this.#calls.replaceChildren(...toolCalls.map(callCard));
    this.showState();
  }

  /** Draws what can be done: going on and asking again only with the last answer. */
  showActions({ isLast, isBusy, position }) {
    const { on } = this.#context;
    const { text, toolCalls, pixtral } = this.#answer;
    const drawn = [
      position,
      text ? copyButton(() => text, { of: "answer", selects: this.#text }) : null,
      isLast ? action("again", "Regenerate", on.regenerate, isBusy) : null,
      isLast && isUnfinished(this.#answer) ? action("on", "Go on", on.goOn, isBusy) : null,
      make("span", { className: "gap" }),
      pixtral ? toggle(receipt(this.#answer), "timing", this.#timing, () => this.#drawTiming()) : null,
      toggle([icon("code"), make("span", {}, "As code")], "as-code", this.#code, () => {
        if (!this.#code.hasChildNodes()) this.#code.append(asCode(this.#context.request()));
      }),
    ];
    this.#actions.replaceChildren(...drawn.filter(Boolean));
    this.#calls.querySelector("form")?.remove();
    if (isLast && toolCalls.length) this.#calls.append(resultsForm(toolCalls, on.sendResults, isBusy));
    this.rescale();
  }

  /** The scale changes when another answer becomes the conversation's longest. */
  rescale() {
    if (!this.#timing.hidden) this.#drawTiming();
  }

  #drawTiming() {
    this.#timing.replaceChildren(timeline(this.#answer, this.#context.longest()));
  }
}

function isUnfinished({ text, state, finish, settings }) {
  return Boolean(text) && !settings.schema && (state !== "done" || finish === "length");
}

function endOf({ text, toolCalls, finish }) {
  if (finish === "length") return "Cut off at the most tokens that it may have.";
  return text || toolCalls.length ? "" : "No text came.";
}

function action(name, label, onclick, disabled) {
  const properties = { type: "button", className: "quiet", title: label, disabled, onclick };
  return make("button", properties, icon(name), make("span", {}, label));
}

let folds = 0;

/** A button that opens and closes what stands below it. */
function toggle(children, className, fold, onOpen) {
  fold.id ||= `fold-${++folds}`;
  const button = make("button", { type: "button", className: `quiet ${className}` }, ...children);
  const show = () => {
    button.setAttribute("aria-expanded", String(!fold.hidden));
    if (!fold.hidden) onOpen();
  };
  button.setAttribute("aria-controls", fold.id);
  button.addEventListener("click", () => {
    fold.hidden = !fold.hidden;
    show();
  });
  show();
  return button;
}

function callCard({ name, arguments: given }) {
  let shown = given;
  try {
    shown = JSON.stringify(JSON.parse(given), null, 2);
  } catch {
    // The text is exactly what the model wrote.
  }
  return make("div", { className: "call" }, make("p", {}, "Calls ", make("strong", {}, name)), codeBlock(shown, "json"));
}

/** The form in which a user enters the results of the tools. */
function resultsForm(calls, onSend, disabled) {
  const fields = calls.map(({ name }) =>
    make("textarea", { rows: 2, "aria-label": `Result of ${name}`, placeholder: `Result of ${name}` }),
  );
  const send = (event) => {
    event.preventDefault();
    onSend(calls.map(({ id }, i) => ({ id, content: fields[i].value })));
  };
  return make(
    "form",
    { className: "results", onsubmit: send },
    ...fields,
    make("button", { type: "submit", disabled }, "Send the results"),
  );
}
