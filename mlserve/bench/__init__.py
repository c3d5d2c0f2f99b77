"""Load as production makes it: an open-loop schedule, sent whether or not earlier requests were answered."""
