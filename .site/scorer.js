// The order of search results: names that one imports, lessons, what one looks up, Chinese.
var Scorer = {
  score: ([docname, title, anchor, descr, score]) => {
    if (descr !== null && docname === "api/ddp_helpers") return score + 6;
    if (docname.startsWith("notebooks/zh_CN") || docname === "zh_CN") return score - 20;
    if (/^notebooks\/\d/.test(docname)) return score + 12;
    if (docname === "exercises" || docname === "index") return score + 3;
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
