// How far the desktop is, as the portal tells it. Without this script the page loads
// itself anew every five seconds.
const $ = (id) => document.getElementById(id);
const events = new EventSource('/desk/progress');

events.addEventListener('progress', (e) => {
  const p = JSON.parse(e.data);
  if ($('stage').textContent !== p.text) $('stage').textContent = p.text;
  $('bar').value = p.step;
  if ($('reason').textContent !== p.reason) $('reason').textContent = p.reason;
  $('words').textContent = p.detail;
  $('detail').hidden = p.detail === '';
  $('ways').hidden = !p.failed;
  if (p.ready || p.gone) {
    events.close();
    location.replace('/desk');
  }
});
// The browser connects again by itself; one that may not goes to the sign-in.
events.addEventListener('error', () => {
  if (events.readyState === EventSource.CLOSED) location.replace('/desk');
});
