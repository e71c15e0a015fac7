// OpenSeadragon adds an inline style, which the page forbids, unless it finds this; viewer.css has the rule.
const style = document.createElement("style");
style.type = "text/plain";
style.dataset.openseadragonMobileCss = "true";
document.head.append(style);

// Before the first paint: the colours that were chosen last, or those of the system.
const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
