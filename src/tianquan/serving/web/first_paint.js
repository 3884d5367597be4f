// Runs before the first paint, so that a chosen theme never flashes the other one. Everything else is a module.
(function () {
  try {
    const theme = localStorage.getItem("tianquan.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    /* storage is switched off: the system's theme stays */
  }
})();
