// How far the desktop is, as the portal tells it: on a page of its own while there is no
// screen, and above the screen until there is a desktop on it. Without this script the
// page loads itself anew every five seconds.
const $ = (id) => document.getElementById(id);
const above = Boolean($('screen'));
const events = new EventSource('/desk/progress');

events.addEventListener('progress', (e) => {
  const p = JSON.parse(e.data);
  if ($('stage').textContent !== p.text) $('stage').textContent = p.text;
  $('bar').value = p.step;
  if ($('reason').textContent !== p.reason) $('reason').textContent = p.reason;
  $('words').textContent = p.detail;
  $('detail').hidden = p.detail === '';
  $('ways').hidden = !p.failed;
  if (p.ready || p.gone || p.screen !== above) events.close();
  if (p.gone || p.screen !== above) location.replace('/desk');
  else if (p.ready) $('progress').remove();
});
// The browser connects again by itself; one that may not goes to the sign-in.
events.addEventListener('error', () => {
  if (events.readyState === EventSource.CLOSED) location.replace('/desk');
});
