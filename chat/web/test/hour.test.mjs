// An hour in a minute, by a service that is made up: it doesn't grow, and what is said to it stays text.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname } from "node:path";
import { after, before, test } from "node:test";
import { PT } from "../pt.js";
import { assertAccessible, assertClean, assertFits, newPage, open, pictures } from "./browser.mjs";
import { sleep } from "./fleet.mjs";

const TYPES = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml" };
const HOSTILE = `<img src=x onerror="window.hit=1"><script>window.hit=1</script>`;
const CACHES = ["message", "user", "company", "contact", "contact_by_phone", "validation", "tool_result", "inbox", "contact_page", "overview", "api_key"];
const web = new URL("..", import.meta.url);

let browser, server, url, streaming, full;

const point = (t) => ({
  t,
  reads: CACHES.map((_, index) => (index === 6 ? null : [900 + 300 * Math.sin(t / 6e4 + index), 80 + (t % 7), 9])),
  latency: [[1.2, 4.5], [400, 900 + (t % 90)], [2_000, 9_000]],
  staleness: [90 + (t % 11), 120],
  propagation: [0.9, 3 + (t % 3)],
  repairs: t % 300_000 === 0 ? 2 : 0,
  states: t % 900_000 < 60_000 ? { "00000001": "i", "00000002": "u" } : {},
  alone: false,
});

function instance(index, t, turn) {
  const id = `${String(index).padStart(8, "0")}-0000-4000-8000-${String(turn).padStart(12, "0")}`;
  return {
    name: index === 2 ? HOSTILE : `instance${index}-${turn}`, id, address: "127.0.0.1:1", version: "0.1.0", startedAt: new Date(t - 9e6), seenAt: new Date(t),
    state: ["coherent", "isolated", "unverified", "recovering", "silent"][index % 5], leaseAgeMs: t % 900, remoteUp: true, busUp: index !== 1, hints: 7, repairs: 1,
    reads: [900, 80, 9], requests: 1_000, p50Ms: 0.2, p99Ms: 12, pool: { requests: { inUse: 1, max: 10 }, loads: { inUse: 0, max: 8 } },
    audits: { "1h": { audits: 1_000, violations: index === 3 ? 1 : 0 } },
  };
}

function frame(t, second) {
  const turn = Math.floor(second / 20);
  const alert = { name: "instance-not-coherent", severity: second % 2 ? "critical" : "warning", instance: HOSTILE, since: new Date(t - 1_000 * (second % 50)), value: 3, threshold: 0, unit: "seconds", detail: HOSTILE };
  const now = {
    at: new Date(t), instance: "mock", version: "0.1.0", build: "1", alone: false, boundMs: 1_000, alertHitRate: 60, since: new Date(t - 9e6),
    instances: [0, 1, 2, 3, 4, 5].map((index) => instance(index, t, index === 5 ? turn : 0)),
    caches: CACHES.map((name) => ({ name, rates: [900, 80, 9], loads: second, entries: 1_000, bytes: 1e6, loadErrors: 3 })),
    alerts: [alert, { ...alert, name: `later-${turn}` }],
    redis: { configured: true, up: true, memory: { usedMemory: 1e6, memoryUsagePercent: 3 } },
    imports: [{ id: String(turn), company: 7, format: "csv", state: "running", rows: second, accepted: second, rejected: 0, rowsPerSecond: 9, bytes: 100, bytesDone: second % 100, instance: HOSTILE, problem: HOSTILE }],
  };
  return { now, fine: point(t), coarse: second % 10 === 0 ? point(t) : null };
}

before(async () => {
  server = createServer((request, response) => {
    if (request.url === "/api/v1/cache/stream" && full) {
      return response.writeHead(503, { "retry-after": "1", "content-type": "application/problem+json" }).end(JSON.stringify({ detail: "64 watch already: close a dashboard" }));
    }
    if (request.url === "/api/v1/cache/stream") {
      response.writeHead(200, { "content-type": "text/event-stream" });
      streaming = (event, data) => response.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
      return;
    }
    const file = /^\/(\?|$)/.test(request.url) ? "index.html" : request.url.replace(/^\/web\//, "");
    try {
      response.writeHead(200, { "content-type": TYPES[extname(file)] }).end(readFileSync(new URL(file, web)));
    } catch {
      response.writeHead(404).end();
    }
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  url = `http://127.0.0.1:${server.address().port}/`;
  browser = await open();
});

after(async () => {
  await browser?.close();
  server.closeAllConnections();
  server.close();
});

test("an hour of figures does not make it grow, and nothing of them becomes markup", async () => {
  const { page, seen } = await newPage(browser);
  await page.goto(url);
  while (!streaming) await sleep(20);
  const began = Date.now() - 9e6;
  const fine = Array.from({ length: 300 }, (_, index) => point(began - (300 - index) * 1_000));
  const coarse = Array.from({ length: 360 }, (_, index) => point(began - (360 - index) * 10_000));
  streaming("history", { fine, coarse });
  let second = 0;
  const go = async (seconds) => {
    for (const until = second + seconds; second < until; second += 1) {
      streaming("now", frame(began + second * 1_000, second));
      if (second % 5 === 4) await page.evaluate(() => new Promise(requestAnimationFrame));
    }
    // The last one is shown.
    const loads = `${new Intl.NumberFormat("en").format(second - 1)} in all`;
    await page.waitForFunction((loads) => document.querySelector("#caches").textContent.includes(loads), loads, { timeout: 120_000 });
  };
  const chromium = await page.context().newCDPSession(page);
  await chromium.send("Performance.enable");
  const size = async () => {
    for (let turn = 0; turn < 3; turn += 1) await chromium.send("HeapProfiler.collectGarbage");
    const { metrics } = await chromium.send("Performance.getMetrics");
    const of = (name) => metrics.find((metric) => metric.name === name).value;
    return { heap: of("JSHeapUsedSize"), nodes: of("Nodes"), listeners: of("JSEventListeners") };
  };
  await go(1);
  await page.getByText("1 hour").click();
  await page.locator(".chart summary").first().click();
  await go(599);
  const first = await size();
  await go(3_600);
  const last = await size();
  console.log(`after 10 minutes ${JSON.stringify(first)}, after 70 ${JSON.stringify(last)}`);
  assert.ok(last.heap < first.heap * 1.15 + 500_000, "the heap");
  assert.ok(last.nodes < first.nodes * 1.1 + 50, "the document");
  assert.ok(last.listeners <= first.listeners + 10, "listeners");
  assert.equal(await page.locator("#instances > li").count(), 6);
  assert.equal(await page.evaluate(() => window.hit), undefined);
  assert.equal(await page.locator("img, main script").count(), 0);
  assert.ok((await page.locator("#instances").innerText()).includes(HOSTILE), "shown as what it is");
  await assertAccessible(page, "with every state");
  await page.screenshot({ path: `${pictures}hour.png`, fullPage: true });
  assertClean(seen);
  await page.close();
});

test("where too many watch it says so, and tries again", async () => {
  full = true;
  const { page, seen } = await newPage(browser);
  await page.goto(url);
  await page.getByText(/Lost: 64 watch already: close a dashboard; no figures yet; trying again in \d+ s/).waitFor();
  [full, streaming] = [false, null];
  while (!streaming) await sleep(20);
  streaming("history", { fine: [], coarse: [] });
  streaming("now", frame(Date.now(), 0));
  await page.getByText("Live", { exact: true }).first().waitFor();
  assertClean(seen);
});

const texts = (page) =>
  page.evaluate(() => {
    const all = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT, (node) => (node.parentElement.closest("script, noscript, #language") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT));
    const said = [document.title];
    while (all.nextNode()) said.push(all.currentNode.data.trim());
    for (const one of document.querySelectorAll("[aria-label], [placeholder]")) said.push(one.ariaLabel ?? one.placeholder);
    return said.filter(Boolean);
  });

async function showing(page, t) {
  while (!streaming) await sleep(20);
  streaming("history", { fine: [point(t - 2_000), point(t - 1_000)], coarse: [point(t - 20_000), point(t - 10_000)] });
  streaming("now", frame(t, 1));
  await page.locator("#instances > li").nth(5).waitFor();
  await page.locator(".chart summary").first().click();
}

test("it speaks the browser's language, another if that is chosen, and says nothing in two", async () => {
  const t = Date.parse("2026-11-28T14:05:09Z");
  const begin = async (options) => {
    [full, streaming] = [false, null];
    const { page, seen } = await newPage(browser, { timezoneId: "UTC", ...options });
    await page.goto(url);
    await showing(page, t);
    return { page, seen };
  };
  const { page, seen } = await begin({ locale: "en-US" });
  const english = await texts(page);
  streaming = null;
  await page.getByRole("button", { name: "Português" }).click();
  await showing(page, t);
  const portuguese = await texts(page);
  assert.equal(await page.evaluate(() => document.documentElement.lang), "pt-BR");

  const labels = Object.keys(PT).filter((text) => PT[text] !== text);
  assert.ok(labels.filter((text) => english.includes(text)).length > 50, "the labels are looked for where they are");
  assert.deepEqual(labels.filter((text) => portuguese.includes(text)), [], "labels left in English");
  // Also what the table lacks. Names stay as they are, and so does what the service says.
  const names = /(?<!\p{L})(Perto|Caches?|Redis|Postgres|openapi\.json|readyz|livez|L1|L2|p50|p99|min|ms|µs|KiB|MiB)(?!\p{L})/gu;
  const given = new Set([...CACHES.map((name) => name.replaceAll("_", " ")), ...frame(t, 1).now.instances.map((one) => one.name), "instance-not-coherent", "later-0", HOSTILE]);
  const plain = (all) => all.filter((text) => !given.has(text)).map((text) => text.replace(names, "").replace(/[\d.,:]+/g, "#"));
  const before = new Set(plain(english));
  assert.deepEqual(plain(portuguese).filter((text) => before.has(text) && /\p{L}{2}/u.test(text)), [], "the same in both");

  // Numbers, times and dates too.
  for (const said of [english, portuguese]) assert.ok(said.includes("14:05:08"), "times");
  assert.ok(english.some((text) => text.includes("1,000 entries")) && portuguese.some((text) => text.includes("1.000 entradas")));
  assert.ok(english.some((text) => /\b91\.\d %/.test(text)) && portuguese.some((text) => /\b91,\d %/.test(text)), "shares");
  assert.match(await page.locator("#since").innerText(), /desde 28\/11\/2026, 11:35:09\.$/);
  await assertAccessible(page, "in Portuguese");
  for (const width of [1_280, 320]) {
    await page.setViewportSize({ width, height: 900 });
    await assertFits(page, `in Portuguese, ${width}`);
    await page.screenshot({ path: `${pictures}portuguese-${width}.png`, fullPage: true });
  }

  // What is chosen is kept, whatever the browser says; and back it goes.
  streaming = null;
  await page.reload();
  await showing(page, t);
  assert.equal(await page.locator("#h-fleet").innerText(), "Instâncias");
  streaming = null;
  await page.getByRole("button", { name: "English" }).click();
  await showing(page, t);
  assert.deepEqual([await page.locator("#h-fleet").innerText(), await page.evaluate(() => document.documentElement.lang)], ["Instances", "en"]);
  assertClean(seen);
  await page.close();

  for (const [locale, heading] of [["pt-BR", "Instâncias"], ["pt-PT", "Instâncias"], ["de-DE", "Instances"]]) {
    const { page } = await begin({ locale });
    assert.equal(await page.locator("#h-fleet").innerText(), heading, locale);
    await page.close();
  }
});

test("in a browser that keeps nothing the language can be chosen all the same", async () => {
  const { page } = await newPage(browser, { locale: "en-US" });
  await page.addInitScript(() => Object.defineProperty(window, "localStorage", { get: () => { throw new Error("kept from it"); } }));
  await page.goto(url);
  await page.getByRole("button", { name: "Português" }).click();
  await page.getByRole("button", { name: "English" }).waitFor();
  await page.getByRole("button", { name: "English" }).click();
  await page.getByRole("button", { name: "Português" }).waitFor();
  assert.equal(await page.locator("#h-alerts").textContent(), "Alerts");
  await page.close();
});
