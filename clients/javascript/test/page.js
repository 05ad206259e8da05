// node page.js CHROMIUM PLAN: as peer.js, with the client in a page of this Chromium; a plan with `events` is one for the
// browser's own EventSource.
//
// The page is one of the server's own (any will do): it is its address that lets it open a WebSocket to this machine. Only
// the files that it imports are answered here.

import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const [executablePath, text] = process.argv.slice(2);
const plan = JSON.parse(text);
const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);

const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});
const page = await browser.newPage();
page.on('console', (message) => console.error(message.text()));
page.on('pageerror', (error) => say({ event: 'pageerror', message: String(error) }));
const origin = new URL((plan.events ?? plan.url).replace(/^ws/, 'http')).origin;
const files = { '/corecast.js': '../corecast.js', '/play.js': './support/play.js', '/listen.js': './support/listen.js' };
for (const [path, file] of Object.entries(files)) {
  const body = await readFile(new URL(file, import.meta.url));
  await page.route(origin + path, (route) => route.fulfill({ contentType: 'text/javascript', body }));
}
await page.exposeFunction('say', say);
await page.goto(`${origin}/livez`);
await page.evaluate(async (plan) => {
  if (plan.events) {
    const { listen } = await import('/listen.js');
    return listen(plan.events, window.say);
  }
  const [{ Corecast }, { play }] = await Promise.all([import('/corecast.js'), import('/play.js')]);
  window.act = play(Corecast, plan, window.say);
}, plan);
say({ event: 'browser', version: browser.version() });

createInterface({ input: process.stdin })
  .on('line', (line) => page.evaluate((command) => window.act(command), JSON.parse(line)))
  .on('close', () => browser.close().finally(() => process.exit()));
