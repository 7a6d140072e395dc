// The pictures that the next question is sent with.

import { KINDS, converted } from "./convert.js";
import { find, icon, make, megabytes } from "./dom.js";

export class Tray {
  pictures = [];
  limits = null;
  settled = Promise.resolve();

  /** `shown` says how many pictures the conversation holds already. */
  constructor(shown) {
    this.shown = shown;
  }

  /** Resolves once all files that were given are read. */
  add(files) {
    this.settled = Promise.all([this.settled, this.#read([...files])]);
    return this.settled;
  }

  put(pictures) {
    for (const picture of pictures) {
      picture.problem ??= this.#problem(picture);
      this.pictures.push(picture);
    }
    this.render();
  }

  take() {
    const pictures = this.pictures;
    this.pictures = [];
    this.render();
    return pictures;
  }

  get refused() {
    return this.pictures.find((picture) => picture.problem);
  }

  render() {
    const list = find("#tray");
    list.hidden = !this.pictures.length;
    list.replaceChildren(...this.pictures.map((picture) => this.#item(picture)));
  }

  #item(picture) {
    const image = picture.url ? make("img", { src: picture.url, alt: "" }) : icon("picture");
    image.addEventListener("error", () => image.replaceWith(icon("picture")));
    image.addEventListener("load", () => {
      const most = this.limits?.max_image_pixels ?? Infinity;
      if (!picture.problem && image.naturalWidth * image.naturalHeight > most) {
        picture.problem = `more than ${Math.round(most / 1e6)} megapixels`;
        this.render();
      }
    });
    const remove = make(
      "button",
      {
        type: "button",
        className: "remove",
        title: "Remove",
        "aria-label": `Remove ${picture.name}`,
        onclick: () => this.#remove(picture),
      },
      icon("remove"),
    );
    return make(
      "li",
      { className: picture.problem ? "picture bad" : "picture" },
      make("div", { className: "frame" }, image),
      make(
        "div",
        { className: "about" },
        make("span", { className: "name", title: picture.name }, picture.name),
        picture.problem
          ? make("span", { className: "reason" }, picture.problem)
          : make("span", { className: "size" }, megabytes(picture.size)),
        picture.note && make("span", { className: "note" }, picture.note),
      ),
      remove,
    );
  }

  #remove(picture) {
    this.pictures = this.pictures.filter((each) => each !== picture);
    for (const each of this.pictures) {
      if (each.isSurplus) each.problem = this.#problem(each, this.pictures.indexOf(each));
    }
    this.render();
    find("#question").focus();
  }

  async #read(given) {
    // A PDF gives as many pages as still fit, and at least one, which says why it does not fit.
    const most = Math.max(1, this.#most - this.shown() - this.pictures.length);
    const read = (await Promise.all(given.map((file) => converted(file, most)))).flat();
    const pictures = read.map(({ file: { name, size, type }, problem, note }) => {
      return { name: name || "picture", size, type, problem, note };
    });
    await Promise.all(
      pictures.map(async (picture, i) => {
        picture.problem ??= this.#unfit(picture);
        // A film that was taken for a picture stays unread, too.
        picture.url = picture.problem ? "" : await dataUrl(read[i].file).catch(() => "");
        if (!picture.problem && !picture.url) picture.problem = "cannot be read";
      }),
    );
    this.put(pictures);
  }

  #unfit({ type, size }) {
    const most = this.limits?.max_image_bytes ?? Infinity;
    if (!KINDS.includes(type)) return "not a PNG, JPEG, WebP or GIF picture, and no PDF";
    return size > most ? `larger than ${megabytes(most)}` : undefined;
  }

  get #most() {
    return this.limits?.max_images ?? Infinity;
  }

  #problem(picture, before = this.pictures.length) {
    const most = this.#most;
    picture.isSurplus = this.shown() + before >= most;
    return picture.isSurplus ? `one more than the ${most} that a conversation may hold` : undefined;
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
