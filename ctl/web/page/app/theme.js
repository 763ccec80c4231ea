"use strict";
// Before the first paint: the theme that this browser remembers. Without one, the system's.
try {
  const kept = localStorage.getItem("xlb-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
} catch {
  // storage is switched off
}
