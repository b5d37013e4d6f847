// A page opened as a file may not read other pages, which the lines under a search result need.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// The copy button drops the last line end, so that a pasted command does not start by itself.
// Of a whole file it is to keep it: an unseen second line end is the one that it drops.
document.querySelectorAll(".whole-file pre").forEach((file) => {
  const end = file.appendChild(document.createElement("span"));
  end.hidden = true;
  end.textContent = "\n";
});
