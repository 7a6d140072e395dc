// The list of conversations at the side: search, open, rename, delete.

import { find, icon, make } from "../dom.js";

const DAY_MS = 86_400_000;
const DATE = new Intl.DateTimeFormat("en", { day: "numeric", month: "short" });
const TIME = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

export class HistoryList {
  #summaries = [];
  #current = "";
  #on;

  /** @param {{open: Function, rename: Function, remove: Function}} on what happens to a summary */
  constructor(on) {
    this.#on = on;
    find("#search").addEventListener("input", () => this.#draw());
  }

  /** @param {import("./database.js").Summary[]} summaries */
  show(summaries, current) {
    this.#summaries = summaries;
    this.#current = current;
    this.#draw();
  }

  #draw() {
    const words = find("#search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.#summaries.filter(({ text }) => words.every((word) => text.includes(word)));
    find("#conversations").replaceChildren(...found.map((each) => this.#item(each)));
    const none = find("#no-conversations");
    none.hidden = found.length > 0;
    none.textContent = words.length ? "No conversation has these words." : "Conversations appear here.";
  }

  #item(summary) {
    const { id, title, updated } = summary;
    const isCurrent = id === this.#current;
    const open = make(
      "button",
      { type: "button", className: "open", onclick: () => this.#on.open(summary), title },
      make("span", { className: "title" }, title),
      make("span", { className: "when" }, when(updated)),
    );
    if (isCurrent) open.setAttribute("aria-current", "true");
    const item = make("li", { className: isCurrent ? "current" : "" }, open);
    item.append(
      action("edit", `Rename ${title}`, () => this.#rename(item, summary)),
      action("delete", `Delete ${title}`, () => this.#on.remove(summary)),
    );
    return item;
  }

  /** Enter, or leaving the field, accepts the name; Escape does not. */
  #rename(item, summary) {
    const field = make("input", { type: "text", value: summary.title, "aria-label": "New name" });
    let isOver = false;
    const end = (isTaken) => {
      if (isOver) return;
      isOver = true;
      const title = field.value.trim();
      if (isTaken && title && title !== summary.title) this.#on.rename(summary, title);
      else this.#draw();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      end(event.key === "Enter");
    });
    field.addEventListener("blur", () => end(true));
    item.replaceChildren(field);
    field.select();
  }
}

function action(name, label, onclick) {
  const properties = { type: "button", className: "quiet act", title: label, "aria-label": label };
  return make("button", { ...properties, onclick }, icon(name));
}

function when(time) {
  const date = new Date(time);
  const isToday = date.toDateString() === new Date().toDateString();
  if (isToday) return TIME.format(date);
  return Date.now() - time < 2 * DAY_MS && date.getDate() === new Date(Date.now() - DAY_MS).getDate()
    ? "yesterday"
    : DATE.format(date);
}
