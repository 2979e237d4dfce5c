// By hand: a fleet to look at in a browser, and pictures of it. `node web/test/look.mjs [SECONDS]`
import { mkdirSync } from "node:fs";
import { chromium } from "playwright-core";
import { ADMIN, Fleet, sleep } from "./fleet.mjs";

const fleet = await Fleet.start();
const load = fleet.load();
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
try {
  mkdirSync("target/dashboard", { recursive: true });
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  page.on("console", (message) => console.log("console:", message.text()));
  page.on("pageerror", (error) => console.log("error:", error.stack));
  await page.goto(fleet.instances[0].url + "/");
  await page.screenshot({ path: "target/dashboard/locked.png" });
  await page.fill("#key", ADMIN);
  await page.click("#unlock button");
  await sleep(1000 * Number(process.argv[2] ?? 20));
  for (const theme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: theme });
    for (const width of [390, 1280, 2560]) {
      await page.setViewportSize({ width, height: width > 2000 ? 1440 : 900 });
      await sleep(1500);
      await page.screenshot({ path: `target/dashboard/${theme}-${width}.png`, fullPage: true });
    }
  }
  const mark = await page.evaluate(() => performance.getEntriesByType("paint").map((e) => [e.name, e.startTime]));
  console.log(JSON.stringify(mark));
} finally {
  await browser.close();
  await fleet.end();
  await load;
}
