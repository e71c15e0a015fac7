// OpenSeadragon adds an inline style, which the page forbids, unless it finds one. This is one by name only; viewer.css
// has the rule.
const style = document.createElementNS(null, "style");
style.setAttribute("data-openseadragon-mobile-css", "true");
document.head.append(style);

// Before the first paint: the colours that were chosen last, or those of the system.
const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
