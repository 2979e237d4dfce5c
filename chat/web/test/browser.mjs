// A headless Chromium, and what every page in it is held to: nothing is asked of other machines, and no script fails.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
export const pictures = new URL("../../../target/dashboard/", import.meta.url).pathname;

export const open = () =>
  chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--enable-precise-memory-info"] });

/** A page, and what it has asked for and said. */
export async function newPage(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  const seen = { requests: [], errors: [], weight: 0 };
  page.on("request", (request) => seen.requests.push(request.url()));
  page.on("pageerror", (error) => seen.errors.push(error.stack));
  page.on("console", (message) => {
    // Refused requests are in the console too.
    if (message.type() === "error" && !/Failed to load resource/.test(message.text())) seen.errors.push(message.text());
  });
  return { page, seen };
}

export function assertClean(seen) {
  const away = seen.requests.filter((url) => !["127.0.0.1", "localhost"].includes(new URL(url).hostname));
  assert.deepEqual(away, [], "requests that leave this machine");
  assert.deepEqual(seen.errors, [], "errors of scripts");
}

/** Faults that keep somebody from using the page. */
export async function assertAccessible(page, what) {
  await page.evaluate(axe);
  const { violations, passes } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  assert.ok(passes.length > 10, "axe has looked");
  const serious = violations.filter((fault) => ["serious", "critical"].includes(fault.impact));
  const told = serious.map((fault) => `${fault.id}: ${fault.nodes.map((node) => node.html.slice(0, 120)).join(" | ")}`);
  assert.deepEqual(told, [], `serious faults ${what}`);
  return violations.map((fault) => `${fault.impact} ${fault.id}`);
}

export async function assertFits(page, what) {
  const [wide, room] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(wide <= room, `${what}: ${wide} px wide in ${room}`);
}
