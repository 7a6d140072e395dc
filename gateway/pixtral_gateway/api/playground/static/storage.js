// Small texts that a browser, or one tab of it, keeps. Where it keeps none, each visit begins anew.

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
        // Not kept.
      }
    },
  };
}

export const ofBrowser = over(() => localStorage);
export const ofTab = over(() => sessionStorage);
