// Before the first paint: the colours that were chosen last, or those of the system.
const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
