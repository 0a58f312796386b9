/** The look of the viewer, once per page. */
const STYLE = `
.trelliscore-viewer { position: relative; display: flex; flex-direction: column; height: 100%; min-height: inherit; overflow: hidden;
  border-radius: 8px; color: #e6e8eb; font: 12px/1.4 system-ui, sans-serif; user-select: none;
  background: radial-gradient(circle at 50% 40%, #5a6068, #2b2e33 75%); }
.trelliscore-viewer canvas { flex: 1; width: 100%; min-height: 0; cursor: grab; touch-action: none; outline: none; }
.trelliscore-viewer canvas:active { cursor: grabbing; }
.trelliscore-viewer .bar { display: flex; flex-wrap: wrap; align-items: center; gap: 4px; padding: 6px; background: #1b1d21cc; }
.trelliscore-viewer .bar :is(button, select) { height: 26px; padding: 0 8px; border: 1px solid #ffffff26; border-radius: 6px;
  background: #ffffff14; color: inherit; font: inherit; cursor: pointer; }
.trelliscore-viewer .bar option { background: #26282c; }
.trelliscore-viewer .bar :is(button, select):hover { background: #ffffff29; }
.trelliscore-viewer .bar :is(button, select):focus-visible { outline: 2px solid #6db3f2; }
.trelliscore-viewer .bar button[aria-pressed="true"] { background: #2f6fb0; border-color: #6db3f2; }
.trelliscore-viewer .bar .pager { display: flex; align-items: center; gap: 4px; margin-left: auto; }
.trelliscore-viewer .figures { overflow: hidden; padding: 4px 8px; text-overflow: ellipsis; white-space: nowrap; background: #1b1d21cc; color: #c3c8ce; font-variant-numeric: tabular-nums; }
.trelliscore-viewer .note { position: absolute; inset: 42px 16px 32px; display: grid; place-items: center; text-align: center; pointer-events: none; }
.trelliscore-viewer [hidden] { display: none !important; }
`;

export function addStyle() {
  if (document.getElementById("trelliscore-viewer-style")) return;
  const style = document.createElement("style");
  style.id = "trelliscore-viewer-style";
  style.textContent = STYLE;
  document.head.append(style);
}
