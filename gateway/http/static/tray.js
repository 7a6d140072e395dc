// The pictures that the next question is sent with.

import { find, icon, make, megabytes } from "./dom.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"];

export class Tray {
  pictures = [];
  limits = null;

  /** `shown` says how many pictures the conversation holds already. */
  constructor(shown) {
    this.shown = shown;
  }

  async add(files) {
    for (const file of files) {
      const url = await read(file);
      this.put([{ name: file.name || "picture", size: file.size, type: file.type, url }]);
    }
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
    const image = make("img", { src: picture.url, alt: "" });
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
      ),
      remove,
    );
  }

  #remove(picture) {
    this.pictures = this.pictures.filter((each) => each !== picture);
    for (const each of this.pictures) {
      if (each.isSurplus) {
        delete each.isSurplus;
        each.problem = this.#problem(each, this.pictures.indexOf(each));
      }
    }
    this.render();
    find("#question").focus();
  }

  #problem(picture, before = this.pictures.length) {
    if (!KINDS.includes(picture.type)) return "not a PNG, JPEG, WebP or GIF picture";
    if (!this.limits) return undefined;
    const { max_image_bytes: bytes, max_images: images } = this.limits;
    if (picture.size > bytes) return `larger than ${megabytes(bytes)}`;
    if (this.shown() + before >= images) {
      picture.isSurplus = true;
      return `one more than the ${images} that a conversation may hold`;
    }
    return undefined;
  }
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
