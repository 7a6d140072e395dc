// The conversations that this browser keeps, in IndexedDB.

import { Conversation, newId } from "../conversation.js";

const NAME = "pixtral-serve";
// The parts that the list and its search need, apart from the pictures, which may be large.
const SUMMARIES = "summaries";
const CONVERSATIONS = "conversations";

/** @typedef {{id: string, title: string, updated: number, text: string}} Summary */

export class History {
  #database = null;

  /** Has no effect if the browser stores nothing, as in some private windows. */
  async open() {
    if (!globalThis.indexedDB) return;
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(SUMMARIES, { keyPath: "id" });
      request.result.createObjectStore(CONVERSATIONS, { keyPath: "id" });
    };
    this.#database = await resultOf(request).catch(() => null);
  }

  get isKept() {
    return this.#database !== null;
  }

  /** @returns {Promise<Summary[]>} the newest first */
  async list() {
    if (!this.#database) return [];
    const found = await resultOf(this.#stores("readonly")[0].getAll());
    return found.sort((a, b) => b.updated - a.updated);
  }

  /** @returns {Promise<Conversation | null>} */
  async read(id) {
    if (!this.#database) return null;
    const found = await resultOf(this.#stores("readonly")[1].get(id));
    return found ? new Conversation(found) : null;
  }

  /** Fails if the browser's storage is full. */
  async write(conversation) {
    if (!this.#database) return;
    const [summaries, conversations] = this.#stores("readwrite");
    const { id, title, created, updated, turns } = conversation;
    summaries.put({ id, title, updated, text: textOf(conversation) });
    conversations.put({ id, title, created, updated, turns });
    await done(summaries.transaction);
  }

  async remove(id) {
    if (!this.#database) return;
    const stores = this.#stores("readwrite");
    for (const store of stores) store.delete(id);
    await done(stores[0].transaction);
  }

  /** Adds what was read from a file, each under an id of its own. */
  async add(conversations) {
    for (const each of conversations) await this.write(new Conversation({ ...each, id: newId() }));
  }

  #stores(mode) {
    const transaction = this.#database.transaction([SUMMARIES, CONVERSATIONS], mode);
    return [transaction.objectStore(SUMMARIES), transaction.objectStore(CONVERSATIONS)];
  }
}

/** The text that a search looks through. */
function textOf({ title, turns }) {
  const texts = turns.flatMap(({ question, answers }) => [question, ...answers.map(({ text }) => text)]);
  return [title, ...texts].join("\n").toLowerCase();
}

function resultOf(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function done(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}
