// The page in a browser, on three instances and a Redis that is cut and comes back.

import assert from "node:assert/strict";
import { once } from "node:events";
import { connect } from "node:net";
import { mkdirSync } from "node:fs";
import { after, before, test } from "node:test";
import { gzipSync } from "node:zlib";
import { assertAccessible, assertClean, assertFits, newPage, open, pictures } from "./browser.mjs";
import { ADMIN, Fleet, sleep } from "./fleet.mjs";

const WIDTHS = [390, 1280, 2560];
const MINUTE = { timeout: 60_000 };
let fleet, browser, loading, page, seen;

const text = (selector) => page.locator(selector).innerText();
const card = (name) => page.locator("#instances > li", { has: page.locator("h3", { hasText: name }) });
const entries = async (instance, cache) => {
  const shown = await (await fleet.ask(instance, "GET", "/api/v1/cache/metrics?scope=instance")).json();
  return shown.cache[`${cache}Cache`];
};
const eventually = async (what, isSo, limit = 20_000) => {
  for (const began = Date.now(); !(await isSo()); await sleep(100)) assert.ok(Date.now() - began < limit, `not within ${limit} ms: ${what}`);
};
const shows = (selector, pattern) => page.locator(selector, { hasText: pattern }).first().waitFor(MINUTE);
async function unlock(key = ADMIN) {
  await page.fill("#key", key);
  await page.click("#unlock button");
}

before(async () => {
  mkdirSync(pictures, { recursive: true });
  [fleet, browser] = await Promise.all([Fleet.start(), open()]);
  loading = fleet.load();
  ({ page, seen } = await newPage(browser));
});

after(async () => {
  await browser?.close();
  await fleet?.end();
  await loading;
});

test("it is light, painted within a second, and locked without the admin key", async () => {
  let weight = 0;
  const weighed = [];
  const weigh = (response) => {
    if (!response.url().includes("/api/")) weighed.push(response.body().then((body) => (weight += gzipSync(body).length)));
  };
  page.on("response", weigh);
  await page.goto(`${fleet.instances[0].url}/`, { waitUntil: "load" });
  await shows("#live", /Locked/);
  await Promise.all(weighed);
  page.off("response", weigh);
  const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime);
  console.log(`first paint after ${Math.round(paint)} ms; ${weight} bytes in ${weighed.length} files, compressed`);
  assert.ok(weighed.length >= 12 && weight < 150_000);
  assert.ok(paint < 1_000);
  assert.equal(await page.locator("#figures").isVisible(), false);
  await assertAccessible(page, "while locked");
  await page.screenshot({ path: `${pictures}locked.png` });
});

test("a wrong key is refused in words, and the right one opens it and stays in this tab", async () => {
  await unlock("x".repeat(40));
  await shows("#unlock-why", /refused/);
  assert.equal(await page.locator("#figures").isVisible(), false);
  await unlock();
  await page.locator("#figures").waitFor(MINUTE);
  await shows("#live", /^Live$/);
  const kept = await page.evaluate(() => [location.href, JSON.stringify(localStorage), document.cookie, document.getElementById("key").value]);
  assert.ok(!kept.some((place) => place.includes(ADMIN.slice(0, 10))), kept.join());
  assert.ok(!seen.requests.some((url) => url.includes("admin")), "in no address");
  await page.reload();
  await page.locator("#figures").waitFor(MINUTE);
});

test("it shows every instance and follows them live", async () => {
  for (const { name } of fleet.instances) await card(name).getByText("Coherent", { exact: true }).waitFor(MINUTE);
  await shows("#verdict", /3 of 3 coherent/);
  await eventually("reads by tier", async () => /L1 \d/.test(await text("#tiles")));
  const moving = ["#tiles", "#instances li:nth-of-type(2)", "#caches tbody tr:nth-of-type(3)"];
  for (const selector of moving) {
    const first = await text(selector);
    await eventually(`${selector} changes`, async () => (await text(selector)) !== first);
  }
  const chart = page.locator(".chart .plot").first();
  const described = await chart.getAttribute("aria-label");
  await eventually("the chart says something else", async () => (await chart.getAttribute("aria-label")) !== described);
  assert.match(described, /Reads a second, by tier, the last five minutes\. L1 last \d/);
  await eventually("every chart has points", async () => {
    const said = await page.locator(".chart .plot").evaluateAll((all) => all.map((one) => one.getAttribute("aria-label")));
    return said.length === 6 && said.every((one) => /last [\d.]+|in all/.test(one));
  });
});

test("every chart is also a table, and can be of one cache and of an hour", async () => {
  await page.locator(".chart summary").first().click();
  const rows = page.locator(".chart details table").first().locator("tbody tr");
  await eventually("rows", async () => (await rows.count()) > 1);
  assert.ok((await rows.count()) <= 13);
  assert.match(await rows.first().innerText(), /\d\d:\d\d:\d\d\s+[\d.]+/);
  await page.selectOption("#cache", "company");
  await shows(".chart h3", /by tier: company/);
  await page.getByText("1 hour").click();
  await shows("#instances", /in the last hour/);
  await page.getByText("5 minutes", { exact: true }).click();
  await page.selectOption("#cache", "");
  await page.locator(".chart summary").first().click();
});

test("its buttons do what they say, on every instance", async () => {
  const { instances } = fleet;
  const l1 = async (instance) => (await (await fleet.ask(instance, "GET", "/api/v1/cache/company/entries/7")).json()).l1;
  fleet.loading = false;
  await loading;
  for (const instance of instances) await (await fleet.ask(instance, "GET", "/api/v1/companies/7")).text();
  for (const instance of instances) assert.ok(await l1(instance), "it is held");
  await page.selectOption("#invalidate-cache", "company");
  await page.fill("#invalidate-key", "7");
  await page.getByRole("button", { name: "Invalidate" }).click();
  await shows("#done", /Invalidated 7 of company/);
  await eventually("no instance serves it", async () => (await Promise.all(instances.map(l1))).every((held) => !held?.served));
  await page.fill("#invalidate-key", "no number");
  await page.getByRole("button", { name: "Invalidate" }).click();
  await shows("#done", /Refused \(400\): key: is none of this cache/);

  // Cancelled, nothing happens.
  const users = await entries(instances[1], "user");
  assert.ok(users.entries > 0);
  await page.getByRole("button", { name: "Clear the cache user" }).click();
  await page.locator("#confirm").getByRole("button", { name: "Cancel" }).click();
  assert.equal((await entries(instances[1], "user")).entries, users.entries);
  await page.getByRole("button", { name: "Clear the cache user" }).click();
  await page.locator("#confirm").getByRole("button", { name: "Clear it" }).click();
  await shows("#done", /Cleared user on every instance/);
  const user = "/api/v1/users/1";
  for (const instance of instances) assert.notEqual((await fleet.ask(instance, "GET", user)).headers.get("perto-tier"), "l1");

  assert.ok((await entries(instances[2], "company")).totalRequests > 0);
  await page.getByRole("button", { name: "Reset" }).click();
  await page.locator("#confirm").getByRole("button", { name: "Reset them" }).click();
  await shows("#done", /Every instance counts from zero/);
  assert.equal((await entries(instances[2], "company")).totalRequests, 0);
  await page.getByRole("button", { name: "Dismiss" }).click();
  fleet.loading = true;
  loading = fleet.load();
});

test("a tier is put aside on every instance, with why and until when, and put on again", async () => {
  const tier = async (instance) => (await fleet.ask(instance, "GET", "/api/v1/companies/1")).headers.get("perto-tier");
  assert.equal(await page.locator("#switched").isVisible(), false);
  for (const instance of fleet.instances) await eventually("it is used", async () => (await tier(instance)) === "l1");
  await page.selectOption("#switch-cache", "company");
  await page.selectOption("#switch-tier", "l1");
  await page.fill("#switch-reason", "an incident");
  await page.getByRole("button", { name: "Put aside" }).click();
  await page.locator("#confirm").getByRole("button", { name: "Put it aside" }).click();
  await shows("#done", /l1 is off on every instance/);
  await shows("#switches", /l1 of company[\s\S]*since \d\d:\d\d[\s\S]*until [\s\S]*an incident/);
  for (const instance of fleet.instances) await eventually("it obeys", async () => (await tier(instance)) !== "l1");
  await shows("#alerts", /switched[\s\S]*cache company: l1 is off/);
  await assertAccessible(page, "with a switch");
  await page.screenshot({ path: `${pictures}switched.png`, fullPage: true });
  await page.getByRole("button", { name: "Put it on again" }).click();
  await shows("#done", /l1 is on again on every instance/);
  await page.locator("#switched").waitFor({ state: "hidden" });
  for (const instance of fleet.instances) await eventually("it is used again", async () => (await tier(instance)) === "l1");
});

test("without the admin key every button is refused, and says so", async () => {
  const key = await page.evaluate(() => sessionStorage.getItem("perto-key"));
  await page.evaluate(() => sessionStorage.removeItem("perto-key"));
  const before = await entries(fleet.instances[1], "company");
  const presses = [
    async () => {
      await page.fill("#invalidate-key", "7");
      await page.getByRole("button", { name: "Invalidate" }).click();
    },
    async () => {
      await page.getByRole("button", { name: "Clear the cache company" }).click();
      await page.locator("#confirm").getByRole("button", { name: "Clear it" }).click();
    },
    async () => {
      await page.getByRole("button", { name: "Reset" }).click();
      await page.locator("#confirm").getByRole("button", { name: "Reset them" }).click();
    },
  ];
  for (const press of presses) {
    await press();
    await shows("#done", /Refused \(401\)/);
    await page.locator("#unlock").waitFor(MINUTE);
    await page.getByRole("button", { name: "Dismiss" }).click();
  }
  assert.ok((await entries(fleet.instances[1], "company")).totalRequests >= before.totalRequests, "nothing was reset");
  await unlock(key);
  await shows("#live", /^Live$/);
  await page.locator("#unlock").waitFor({ state: "hidden" });
});

test("a Redis that is cut makes every instance Isolated, with why and what to do, and back it is Coherent", async () => {
  await fleet.cutRedis();
  for (const { name } of fleet.instances) await card(name).getByText("Isolated", { exact: true }).waitFor(MINUTE);
  await card("bea").getByText(/Redis can’t be used/).waitFor(MINUTE);
  await shows("#alerts", /instance-not-coherent[\s\S]*What to do: Isolated: bring Redis back/);
  await shows("#verdict", /0 of 3 coherent/);
  await shows("#said", /./);
  await assertAccessible(page, "with alerts");
  await page.screenshot({ path: `${pictures}isolated.png`, fullPage: true });
  await fleet.returnRedis();
  for (const { name } of fleet.instances) await card(name).getByText("Coherent", { exact: true }).waitFor(MINUTE);
  await eventually("that it was is said", async () => /about \d+ s/.test(await card("bea").innerText()));
});

test("an instance that dies is Silent, and one that comes is shown", async () => {
  const [gone] = fleet.instances.splice(2, 1, await fleet.serve("dee"));
  await card("dee").getByText("Coherent", { exact: true }).waitFor(MINUTE);
  gone.child.kill("SIGKILL");
  await card("cyd").getByText("Silent", { exact: true }).waitFor(MINUTE);
  await shows("#alerts", /instance-silent/);
  await page.screenshot({ path: `${pictures}silent.png`, fullPage: true });
});

test("what limits refuse is shown of the instance that did, with which and how often", async () => {
  fleet.instances.push(await fleet.serve("eve", ["--admin-key", ADMIN, "--max-connections", "20"]));
  await card("eve").getByText("Coherent", { exact: true }).waitFor(MINUTE);
  assert.match(await card("eve").innerText(), /Refused by limits\s+none/i);
  // One address has sixteen places for who shows no key.
  const { port } = new URL(fleet.instances.at(-1).url);
  const strangers = Array.from({ length: 60 }, () => connect(Number(port), "127.0.0.1").on("error", () => {}));
  await card("eve").getByText(/since it began too-many-strangers \d+/).waitFor(MINUTE);
  await eventually("how many a second", async () => /Refused by limits\s+[1-9][\d.]* a second/i.test(await card("eve").innerText()));
  assert.match(await card("bea").innerText(), /Refused by limits\s+none/i);
  await page.screenshot({ path: `${pictures}refused.png`, fullPage: true });
  for (const stranger of strangers) stranger.destroy();
  await assertFits(page, "with refusals");
});

test("a stream that is lost is said to be, with the age of what is shown, and comes back", async () => {
  const [ada] = fleet.instances;
  ada.child.kill("SIGKILL");
  await once(ada.child, "exit");
  await shows("#live", /^Lost: .*figures of \d\d:\d\d:\d\d, \d+ s old; trying again/);
  await shows("#verdict", /Not live/);
  await page.screenshot({ path: `${pictures}lost.png` });
  fleet.instances[0] = await fleet.serve("ada", ["--admin-key", ADMIN], new URL(ada.url).port);
  await shows("#live", /^Live$/);
  await shows("#verdict", /of \d coherent/);
});

test("a tab that nobody sees asks for nothing, and goes on when it is seen", async () => {
  const hide = (hidden) =>
    page.evaluate((hidden) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
  await hide(true);
  await shows("#live", /^Paused/);
  await hide(false);
  await shows("#live", /^Live$/);
});

test("it can be read in both themes and at three widths", async () => {
  for (const theme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: theme });
    for (const width of [...WIDTHS, 320]) {
      await page.setViewportSize({ width, height: width > 2_000 ? 1_440 : 900 });
      await sleep(1_500);
      await assertFits(page, `${theme}, ${width}`);
      await assertAccessible(page, `${theme}, ${width}`);
      await page.screenshot({ path: `${pictures}${theme}-${width}.png`, fullPage: true });
    }
  }
  await page.setViewportSize({ width: 1_280, height: 900 });
  const chromium = await page.context().newCDPSession(page);
  await chromium.send("Emulation.setEmulatedVisionDeficiency", { type: "achromatopsia" });
  await page.emulateMedia({ colorScheme: "light" });
  await sleep(1_200);
  await page.screenshot({ path: `${pictures}without-colour.png`, fullPage: true });
  await chromium.send("Emulation.setEmulatedVisionDeficiency", { type: "none" });
  await page.emulateMedia({ forcedColors: "active" });
  await assertAccessible(page, "with forced colours");
  await page.screenshot({ path: `${pictures}forced-colours.png`, fullPage: true });
});

test("the keyboard reaches everything, and what is chosen is kept", async () => {
  await page.emulateMedia({ forcedColors: "none" });
  await page.keyboard.press("Escape");
  const reached = new Set();
  await page.evaluate(() => document.activeElement.blur());
  for (let press = 0; press < 70; press += 1) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim().slice(0, 20)));
  }
  for (const place of ["theme", "forget", "cache", "invalidate-cache", "invalidate-key", "switch-cache", "switch-reason", "reset", "Clear", "As a table"]) assert.ok(reached.has(place), `${place}: ${[...reached]}`);
  await page.click("#theme");
  await shows("#theme", /light/);
  await page.click("#theme");
  await shows("#theme", /dark/);
  await page.reload();
  await shows("#theme", /dark/);
  assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(16, 20, 24)");
});

test("forgotten, the key is gone; and through it all nothing left this machine", async () => {
  await page.click("#forget");
  await shows("#live", /Locked/);
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
  assertClean(seen);
});
