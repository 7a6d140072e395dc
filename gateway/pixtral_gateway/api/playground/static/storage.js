// Stores small texts in the browser, or in one tab. Without storage, each visit starts empty.

function over(storage) {
  return {
    /** @returns {string | null} */
    get(name) {
      try {
        return storage().getItem(name);
      } catch {
        return null;
      }
    },
    /** @param {string | null} value null forgets it */
    set(name, value) {
      try {
        if (value === null) storage().removeItem(name);
        else storage().setItem(name, value);
      } catch {
        // The browser stores nothing.
      }
    },
  };
}

export const ofBrowser = over(() => localStorage);
export const ofTab = over(() => sessionStorage);
