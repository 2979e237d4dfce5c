// Whatever the page says in English it says in Portuguese; hour.test.mjs looks at it in a browser.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { PT, TODO } from "../pt.js";

const web = new URL("..", import.meta.url);
const read = (name) => readFileSync(new URL(name, web), "utf8");
const scripts = readdirSync(web).filter((name) => name.endsWith(".js") && name !== "pt.js");
const sources = scripts.map(read).join("\n");
const places = (text) => [...text.matchAll(/\{(\d)\}/g)].map(([, place]) => place).sort();

test("every text of the scripts is translated, with the same values in it", () => {
  const said = [...sources.matchAll(/\bt\(\s*"([^"]*)"/g)].map(([, text]) => text);
  assert.ok(said.length > 150, `only ${said.length}`);
  assert.deepEqual(said.filter((text) => !PT[text]), [], "not in pt.js");
  assert.deepEqual(Object.entries(PT).filter(([en, pt]) => places(en).join() !== places(pt).join()), [], "other values");
});

test("nothing is translated that nobody says", () => {
  const page = read("index.html");
  // These come in what the service sends.
  const sent = ["coherent", "isolated", "unverified", "recovering", "silent", "closed", "uploading", "queued", "running", "done", "cancelled", "failed"];
  const left = Object.keys(PT).filter((text) => !sources.includes(`"${text}"`) && !page.includes(text) && !sent.includes(text));
  assert.deepEqual(left, []);
});

test("what to do about each alert is there in both languages", () => {
  const [, lines] = read("alerts.js").match(/WHAT_TO_DO = \{\n([^]*?)\n\};/);
  const names = [...lines.matchAll(/^ {2}"([a-z-]+)": "/gm)].map(([, name]) => name);
  assert.ok(names.length >= 25, `only ${names.length}`);
  assert.deepEqual(Object.keys(TODO).sort(), names.sort());
});
