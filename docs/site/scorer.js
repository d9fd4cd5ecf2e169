// How search results are ranked: as Sphinx does by default, with the pages that help in practice before
// those for people who change kapudf, and text before names.
const PAGES = {
  troubleshooting: 6, operations: 5, "writing-handlers": 4, "handler-reference": 3, guarantees: 3,
  api: -20, "command-line": -6, architecture: -6, performance: -6, checks: -4,
};

var Scorer = {
  score: ([page, , , , score]) => score + (PAGES[page] ?? 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
