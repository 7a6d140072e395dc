// One question and its answer.

import { codePanel } from "./code.js";
import { duration, grouped, icon, make } from "./dom.js";
import { timeline } from "./timeline.js";

export class TurnView {
  #turn;
  #conversation;
  #request;
  #text = document.createTextNode("");
  #answer = make("div", { className: "answer" }, this.#text);
  #note = make("p", { className: "note", hidden: true });
  #badges = [];
  #receipt = make("div", { className: "receipt", hidden: true });

  /** `request` gives what "As code" shows. */
  constructor(turn, conversation, request) {
    this.#turn = turn;
    this.#conversation = conversation;
    this.#request = request;
    this.element = make(
      "li",
      { className: "turn" },
      this.#question(),
      make("h2", { className: "unseen" }, "Answer"),
      this.#answer,
      this.#note,
      this.#receipt,
    );
    this.update();
  }

  /** The answer so far. */
  update() {
    const { answer, state, error, finish } = this.#turn;
    const isOn = state === "answering";
    this.#text.appendData(answer.slice(this.#text.length));
    this.#answer.classList.toggle("waiting", isOn);
    this.#answer.setAttribute("aria-busy", String(isOn));
    const told = {
      stopped: "Stopped.",
      failed: error,
      done: finish === "length" ? "Cut off at the most tokens that it may have." : answer ? "" : "No text came.",
    }[state];
    this.#note.textContent = told ?? "";
    this.#note.hidden = !told;
    this.#note.classList.toggle("bad", state === "failed");
  }

  /** Once it is over. */
  finish() {
    this.update();
    const { pixtral, pictures } = this.#turn;
    if (pixtral) {
      const own = pixtral.images.slice(pixtral.images.length - pictures.length);
      own.forEach((image, i) => {
        const badge = this.#badges[i];
        badge.replaceChildren(
          ...(image.cached ? [icon("check"), "cached"] : [`encoded in ${duration(image.encode_seconds)}`]),
          make("span", {}, `${image.width}×${image.height}, ${grouped(image.tokens)} tokens`),
        );
        badge.classList.toggle("cached", image.cached);
        badge.hidden = false;
      });
    }
    this.#receipt.hidden = this.#turn.state === "answering";
    this.rescale();
  }

  /** Draws the timeline anew: the conversation's longest answer may be another now. */
  rescale() {
    if (this.#receipt.hidden) return;
    const open = this.#receipt.querySelector("details");
    const drawn = this.#turn.pixtral ? [timeline(this.#turn, this.#conversation.longest)] : [];
    this.#receipt.replaceChildren(
      ...drawn,
      open ?? codePanel(this.#request),
    );
  }

  #question() {
    const { question, pictures } = this.#turn;
    const figures = pictures.map((picture) => {
      const badge = make("span", { className: "badge", hidden: true });
      this.#badges.push(badge);
      return make(
        "figure",
        {},
        make("img", { src: picture.url, alt: "" }),
        make("figcaption", {}, make("span", { className: "name" }, picture.name), badge),
      );
    });
    return make(
      "div",
      { className: "question" },
      make("h2", { className: "unseen" }, "Question"),
      figures.length ? make("div", { className: "shown" }, ...figures) : null,
      question ? make("p", {}, question) : null,
    );
  }
}
