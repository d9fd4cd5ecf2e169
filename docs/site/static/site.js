// A page that is opened from a folder may not read other pages to show where the words are in them.
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
