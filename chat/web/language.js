// The language of the page: what was chosen here, else the browser's. The code speaks English; pt.js has the same in Portuguese.

import { PT } from "./pt.js";

const KEPT = "perto-language";

function kept() {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

const wanted = new URLSearchParams(location.search).get("lang") ?? kept() ?? navigator.language;
export const portuguese = /^pt\b/i.test(wanted);
export const locale = portuguese ? "pt-BR" : "en";
const words = new Map(portuguese ? Object.entries(PT) : []);

/** A text in the language of the page, with values for {0}, {1} and so on. */
export const t = (text, ...values) => (words.get(text) ?? text).replace(/\{(\d)\}/g, (_, at) => values[at]);

/** What index.html says. */
function translate() {
  document.documentElement.lang = locale;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = texts.nextNode()); ) {
    const text = node.data.trim();
    if (words.has(text)) node.data = node.data.replace(text, () => words.get(text));
  }
  for (const field of document.querySelectorAll("[placeholder]")) field.placeholder = t(field.placeholder);
}

const other = document.getElementById("language");
if (portuguese) {
  translate();
  Object.assign(other, { lang: "en", textContent: "English" });
}
other.addEventListener("click", () => {
  const chosen = portuguese ? "en" : "pt";
  try {
    localStorage.setItem(KEPT, chosen);
    if (location.search) location.search = "";
    else location.reload();
  } catch {
    // A browser that keeps nothing is told by the address.
    location.search = `?lang=${chosen}`;
  }
});
