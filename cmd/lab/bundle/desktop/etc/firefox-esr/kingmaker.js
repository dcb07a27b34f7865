// Its cache is where XDG_CACHE_HOME says, on the machine's own disk.
pref("browser.cache.disk.capacity", 262144);
pref("browser.cache.disk.smart_size.enabled", false);
// Fewer writes to the home, which goes over the network.
pref("browser.sessionstore.interval", 60000);
pref("toolkit.storage.synchronous", 1);
// Without namespaces of its own for each tab the container is what holds it.
pref("security.sandbox.warn_unprivileged_namespaces", false);
// A screen that is sent is not to move by itself.
pref("general.smoothScroll", false);
pref("ui.prefersReducedMotion", 1);
pref("browser.shell.checkDefaultBrowser", false);
