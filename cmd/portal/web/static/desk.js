// The screen of a desktop: noVNC's library below a page of our own. Where the desktop
// is, and whose, only the portal knows; nothing of it is in any address.
import RFB from '../novnc/core/rfb.js';

const $ = (id) => document.getElementById(id);
const state = $('state');
const say = (what) => { if (state.textContent !== state.dataset[what]) state.textContent = state.dataset[what]; };

let rfb = null;
let pause = 500; // ms; doubles to 10 s

// The next desktop that this browser asks for begins as large as it is shown here, so
// that it is drawn once.
function note() {
  const { clientWidth: width, clientHeight: height } = $('screen');
  document.cookie = `screen=${width}x${height}; path=/; max-age=31536000; secure; samesite=strict`;
}
window.addEventListener('resize', note);

function connect() {
  say('connecting');
  const url = `wss://${location.host}/desk/ws`;
  rfb = new RFB($('screen'), url, { shared: true, wsProtocols: ['binary'] });
  rfb.scaleViewport = true; // until the desktop has the size of the window
  rfb.resizeSession = true;
  rfb.focusOnClick = true;
  rfb.addEventListener('connect', () => { pause = 500; say('connected'); note(); rfb.focus(); });
  rfb.addEventListener('clipboard', (e) => {
    $('cliptext').value = e.detail.text;
    // Where the browser lets us; else the box has it.
    if (navigator.clipboard && document.hasFocus()) navigator.clipboard.writeText(e.detail.text).catch(() => {});
  });
  rfb.addEventListener('disconnect', () => { rfb = null; say('lost'); again(); });
}

// again asks over HTTP first whether there is anything to connect to: a permanent
// answer must not become a loop.
function again() {
  const wait = pause * (0.5 + Math.random());
  pause = Math.min(pause * 2, 10000);
  setTimeout(async () => {
    try {
      const answer = await fetch('/desk/state', { cache: 'no-store' });
      if (answer.status === 401) { location.replace('/login'); return; }
      if (answer.status === 403 || answer.status === 404) { say('moving'); location.replace('/desk'); return; }
      if (answer.ok) { connect(); return; }
    } catch { /* no network: later */ }
    again();
  }, wait);
}

// What the portal has to say while the picture stands still.
setInterval(async () => {
  try {
    const answer = await fetch('/desk/state', { cache: 'no-store' });
    if (answer.status === 401) { location.replace('/login'); return; }
    if (answer.status === 503) say('waiting'); // who does not renew a desktop's lease has it freeze
    if (!answer.ok) return;
    if (rfb) say('connected');
    const s = await answer.json();
    const warned = $('warned');
    warned.textContent = s.warned ? warned.dataset.text : '';
    warned.hidden = !s.warned;
  } catch { /* the stream notices it */ }
}, 20000);

const panel = (open) => {
  $('clipboard').hidden = !open;
  $('clip').setAttribute('aria-expanded', String(open));
  (open ? $('cliptext') : $('clip')).focus();
};
$('clip').addEventListener('click', () => panel($('clipboard').hidden));
$('clipclose').addEventListener('click', () => panel(false));
$('clipsend').addEventListener('click', () => {
  if (rfb) { rfb.clipboardPasteFrom($('cliptext').value); panel(false); rfb.focus(); }
});
$('clipboard').addEventListener('keydown', (e) => { if (e.key === 'Escape') panel(false); });

// A browser that lets us read its clipboard needs no box.
window.addEventListener('focus', async () => {
  try {
    const text = await navigator.clipboard.readText();
    if (rfb && text !== $('cliptext').value) { $('cliptext').value = text; rfb.clipboardPasteFrom(text); }
  } catch { /* it does not, or there is none */ }
});

$('full').addEventListener('click', () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen().catch(() => {});
});
document.addEventListener('fullscreenchange', () => {
  $('full').setAttribute('aria-pressed', String(Boolean(document.fullscreenElement)));
  if (rfb) rfb.focus();
});

// The desktop gets every key. This one leads out of it.
window.addEventListener('keydown', (e) => {
  if (e.ctrlKey && e.altKey && e.code === 'KeyM') {
    e.preventDefault();
    e.stopImmediatePropagation();
    if (rfb) rfb.blur();
    $('clip').focus();
  }
}, true);

for (const form of document.querySelectorAll('form[data-sure]')) {
  form.addEventListener('submit', (e) => { if (!window.confirm(form.dataset.sure)) e.preventDefault(); });
}

// A desktop that starts says how far it is. There is a screen before there is a desktop
// on it, and it is connected meanwhile.
function watch(progress) {
  const events = new EventSource('/desk/progress');
  let begun = false;
  events.addEventListener('progress', (e) => {
    const p = JSON.parse(e.data);
    if ($('stage').textContent !== p.text) $('stage').textContent = p.text;
    $('bar').value = p.step;
    if ($('reason').textContent !== p.reason) $('reason').textContent = p.reason;
    $('words').textContent = p.detail;
    $('detail').hidden = p.detail === '';
    $('ways').hidden = !p.failed;
    if (p.ready || p.gone) events.close();
    if (p.gone) { location.replace('/desk'); return; }
    if (p.ready) progress.remove();
    if (p.screen && !begun) { begun = true; connect(); }
  });
  // The browser asks again by itself; one that may not goes to the sign-in.
  events.addEventListener('error', () => {
    if (events.readyState === EventSource.CLOSED) location.replace('/desk');
  });
}

if ($('progress')) watch($('progress')); else connect();
