"""The page's style sheet: one light, printable column of a scientific report."""

from __future__ import annotations

__all__ = ["CSS"]

CSS = """
:root { color-scheme: light; --ink: #1b2733; --muted: #5b6875; --rule: #d8dee4; --faint: #f4f6f8; --accent: #0b6aa2;
  --sans: "Inter", "Segoe UI", "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif;
  --serif: "Charter", "Bitstream Charter", "Sitka Text", Cambria, Georgia, "Liberation Serif", serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: #fff; color: var(--ink); font: 15px/1.55 var(--sans); }
main, header, footer { max-width: 69rem; margin: 0 auto; padding: 0 2rem; }
header { padding-top: 2.6rem; }
.eyebrow { margin: 0; color: var(--accent); font-size: .78rem; font-weight: 600; letter-spacing: .09em;
  text-transform: uppercase; }
h1 { margin: .25rem 0 .9rem; font: 600 2.15rem/1.18 var(--serif); letter-spacing: -.01em; }
h2 { margin: 0 0 1rem; font: 600 1.4rem/1.25 var(--serif); }
h3 { margin: 1.8rem 0 .6rem; font-size: 1rem; font-weight: 650; }
p { margin: .4rem 0; max-width: 54rem; }
section { padding: 1.7rem 0 1.4rem; border-top: 1px solid var(--rule); scroll-margin-top: 2.6rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
nav { position: sticky; top: 0; z-index: 1; background: rgba(255, 255, 255, .96); border-bottom: 1px solid var(--rule);
  margin-top: 1.4rem; }
nav div { max-width: 69rem; margin: 0 auto; padding: .5rem 2rem; display: flex; flex-wrap: wrap; gap: .2rem 1.5rem;
  font-size: .85rem; }
nav + main > section:first-child { border-top: 0; }
.notice { margin: .5rem 0; padding: .6rem .95rem; border-left: 4px solid #d98a00; background: #fff6e3; color: #6a4300;
  font-weight: 600; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(12.5rem, 1fr)); gap: .7rem 1.6rem;
  margin: 1.1rem 0 0; }
.facts dt { color: var(--muted); font-size: .76rem; }
.facts dd { margin: 0; font-size: .9rem; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.hero { display: grid; grid-template-columns: minmax(15rem, 1fr) minmax(0, 2.1fr); gap: 1rem 2.6rem;
  align-items: center; margin-bottom: 1.3rem; }
.hero .label { color: var(--muted); font-size: .95rem; margin: 0; }
.hero .value { font: 600 3.5rem/1.1 var(--serif); font-variant-numeric: lining-nums tabular-nums; margin: 0; }
.hero .value.absent { font-size: 1.8rem; color: var(--muted); }
.hero .interval { font-size: 1.02rem; margin: .1rem 0 .5rem; font-variant-numeric: tabular-nums; }
.hero .note { color: var(--muted); font-size: .86rem; }
.warning { color: #8a5200; font-weight: 600; }
.protocol { margin: 0; padding-left: 1.15rem; max-width: 52rem; }
.protocol li { margin: .28rem 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(27rem, 1fr)); gap: 1.6rem 2.2rem;
  align-items: start; margin-bottom: 1.3rem; }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figcaption { margin-bottom: .35rem; }
figcaption b { font-size: .95rem; }
figcaption span { display: block; color: var(--muted); font-size: .84rem; max-width: 54rem; }
svg { display: block; max-width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: var(--sans) !important; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
table.full { width: 100%; }
th, td { padding: .34rem .8rem .34rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e9edf1; }
th { color: var(--muted); font-size: .78rem; font-weight: 600; border-bottom-color: #b9c2cb; white-space: nowrap; }
th.number, td.number { text-align: right; }
td.number { white-space: nowrap; }
th.number, td.number { padding-right: 1.5rem; }
td { white-space: pre-line; }
td:first-child { white-space: nowrap; }
tr.best td { background: #eef6fb; font-weight: 600; }
tr.unfinished td { color: var(--muted); }
details { margin-top: .5rem; }
summary { cursor: pointer; color: var(--muted); font-size: .82rem; }
summary:hover { color: var(--accent); }
details .scroll { max-height: 24rem; overflow: auto; margin-top: .5rem; }
details table { font-size: .8rem; }
pre { margin: .6rem 0 0; padding: 1rem 1.2rem; background: var(--faint); border: 1px solid var(--rule);
  border-radius: 4px; font: .8rem/1.5 var(--mono); overflow-x: auto; }
footer { padding-top: 1rem; padding-bottom: 3rem; color: var(--muted); font-size: .8rem; }
footer p { border-top: 1px solid var(--rule); padding-top: .9rem; max-width: none; }
@media screen and (max-width: 56rem) { .hero, .figures { grid-template-columns: minmax(0, 1fr); } }
@media print {
  @page { margin: 16mm 14mm; }
  body { font-size: 10pt; }
  main, header, footer { max-width: none; padding: 0; }
  nav, details:not([open]), #configuration { display: none; }
  .figures { grid-template-columns: 1fr 1fr; }
  figure, tr, .notice, .hero { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .notice, tr.best td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
"""Inlined into every page; it loads nothing."""
