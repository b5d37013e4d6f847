// The order of search results: names that one imports, lessons, what one looks up, and at last
// pages of the other language.
var Scorer = {
  score: ([docname, title, anchor, descr, score]) => {
    if (descr !== null && docname === "api/ddp_helpers") return score + 6;
    const chinese = document.documentElement.lang.startsWith("zh");
    if (/^(notebooks\/)?zh_CN/.test(docname) !== chinese) return score - 20;
    if (/^notebooks\/(zh_CN\/)?\d/.test(docname)) return score + 12;
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
